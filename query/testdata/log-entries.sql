SELECT entry_index, entry FROM root_log WHERE true
  AND (entry_index BETWEEN {p0:UInt64} AND {p1:UInt64})
ORDER BY entry_index
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = 256
-- p1 = 511
