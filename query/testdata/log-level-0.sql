SELECT entry_index, hash FROM root_log WHERE true
  AND (entry_index BETWEEN {p0:UInt64} AND {p1:UInt64})
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = 0
-- p1 = 255
