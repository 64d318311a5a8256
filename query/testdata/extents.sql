SELECT chain, min(sequence), max(sequence) FROM leaves WHERE workspace = unhex({p0:String})
  AND (chain IN (unhex({p1:String}), unhex({p2:String})))
  AND (recorded_at >= fromUnixTimestamp64Micro({p3:Int64}, 'UTC'))
GROUP BY chain
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
-- p2 = 01000000000000000000000000000000
-- p3 = 1767225600000001
