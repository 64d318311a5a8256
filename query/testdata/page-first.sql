SELECT id, occurred_at, recorded_at, chain, sequence, body FROM events WHERE workspace = unhex({p0:String})
ORDER BY occurred_at DESC, id DESC
LIMIT {p1:UInt32}
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = 26
