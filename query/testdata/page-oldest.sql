SELECT id, occurred_at, recorded_at, chain, sequence, body FROM events WHERE workspace = unhex({p0:String})
  AND (occurred_at >= fromUnixTimestamp64Micro({p1:Int64}, 'UTC'))
  AND ((occurred_at, id) > (fromUnixTimestamp64Micro({p1:Int64}, 'UTC'), unhex({p2:String})))
ORDER BY occurred_at ASC, id ASC
LIMIT {p3:UInt32}
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4, max_result_bytes = 33554432
-- p0 = ab0000000000000000000000000000cd
-- p1 = 1767225600000001
-- p2 = 01000000000000000000000000000002
-- p3 = 1001
