SELECT sequence, substring(node, 33, 32) FROM leaves WHERE workspace = unhex({p0:String})
  AND (chain = unhex({p1:String}))
  AND (sequence IN {p2:Array(UInt64)})
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
-- p2 = [65535 327679 393215]
