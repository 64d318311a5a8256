SELECT sequence, id, body, seed, disclosure, chain, kind, toUnixTimestamp64Micro(recorded_at), input_generation, input_partition, input_offset FROM events WHERE workspace = unhex({p0:String})
  AND (chain = unhex({p1:String}) AND sequence > {p2:UInt64} AND kind = 3)
  AND (has(mapKeys(metadata), {p3:String}) AND hasAny(mapValues(metadata), {p4:Array(String)}) AND arrayExists((k, v) -> k = {p3:String} AND has({p4:Array(String)}, v), mapKeys(metadata), mapValues(metadata)))
ORDER BY sequence
LIMIT 100
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = c0000000000000000000000000000001
-- p2 = 7
-- p3 = event_id
-- p4 = [01000000-0000-0000-0000-000000000002]
