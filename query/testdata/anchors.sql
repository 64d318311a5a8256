SELECT size, root, note, witnesses, quorum, toUnixTimestamp64Micro(published_at) FROM checkpoints WHERE true
  AND (size < {p0:UInt64})
ORDER BY size DESC, witnesses DESC
LIMIT 1 BY size
LIMIT 26
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = 9223372036854775808
