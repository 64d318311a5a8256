SELECT id, occurred_at, recorded_at, chain, sequence, body FROM events WHERE workspace = unhex({p0:String})
  AND (recorded_at >= fromUnixTimestamp64Micro({p1:Int64}, 'UTC'))
  AND (recorded_at <= fromUnixTimestamp64Micro({p2:Int64}, 'UTC'))
  AND (id = unhex({p3:String}))
LIMIT 1
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = 1764174589440000
-- p2 = 1764174589440999
-- p3 = 019ac0ffee0070008000000000000000
