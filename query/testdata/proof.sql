SELECT sequence, id, body, seed, disclosure, chain, kind, toUnixTimestamp64Micro(recorded_at), input_generation, input_partition, input_offset FROM events WHERE workspace = unhex({p0:String})
  AND (id = unhex({p1:String}))
LIMIT 1
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = 01000000000000000000000000000002
