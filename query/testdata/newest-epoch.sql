SELECT entry_index, entry FROM root_log WHERE true
  AND (type = 'epoch' AND entry_index < {p0:UInt64})
ORDER BY entry_index DESC
LIMIT 1
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = 9
