SELECT sequence FROM leaves WHERE workspace = unhex({p0:String})
  AND (chain = unhex({p1:String}))
  AND (sequence >= {p2:UInt64} AND sequence < {p3:UInt64})
ORDER BY chain, sequence
LIMIT 1
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
-- p2 = 10
-- p3 = 9007199254740992
