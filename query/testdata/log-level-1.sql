SELECT entry_index, substring(node, 1, 32) FROM root_log WHERE true
  AND (entry_index IN {p0:Array(UInt64)})
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = [767 1023]
