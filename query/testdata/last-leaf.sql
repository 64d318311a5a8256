SELECT chain, toUInt64(0), sequence FROM leaves WHERE workspace = unhex({p0:String})
  AND (chain = unhex({p1:String}))
ORDER BY chain DESC, sequence DESC
LIMIT 1
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
