SELECT chain, sequence, leaf_hash FROM leaves WHERE workspace = unhex({p0:String})
  AND ((chain, sequence) IN {p1:Array(Tuple(FixedString(16), UInt64))})
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = [('\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x27',7),('\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00',6)]
