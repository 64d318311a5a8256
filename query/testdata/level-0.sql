SELECT sequence, leaf_hash FROM leaves WHERE workspace = unhex({p0:String})
  AND (chain = unhex({p1:String}))
  AND (sequence BETWEEN {p2:UInt64} AND {p3:UInt64} OR sequence BETWEEN {p4:UInt64} AND {p5:UInt64})
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
-- p2 = 1
-- p3 = 1
-- p4 = 256
-- p5 = 300
