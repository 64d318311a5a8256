SELECT id, occurred_at, recorded_at, chain, sequence, body FROM events WHERE workspace = unhex({p0:String})
  AND (occurred_at <= fromUnixTimestamp64Micro({p1:Int64}, 'UTC'))
  AND ((occurred_at, id) < (fromUnixTimestamp64Micro({p1:Int64}, 'UTC'), unhex({p2:String})))
  AND (occurred_at >= fromUnixTimestamp64Micro({p3:Int64}, 'UTC'))
  AND (occurred_at <= fromUnixTimestamp64Micro({p4:Int64}, 'UTC'))
  AND (recorded_at >= fromUnixTimestamp64Micro({p5:Int64}, 'UTC'))
  AND (recorded_at <= fromUnixTimestamp64Micro({p6:Int64}, 'UTC'))
  AND (action LIKE {p7:String} OR action IN {p8:Array(String)})
  AND (action_category IN {p9:Array(String)})
  AND (actor_id IN {p10:Array(String)})
  AND (actor_type IN {p11:Array(String)})
  AND (resource IN {p12:Array(String)})
  AND (resource_id IN {p13:Array(String)})
  AND (session_id IN {p14:Array(String)})
  AND (tenant_id IN {p15:Array(String)})
  AND (arrayExists((t, i) -> has({p16:Array(String)}, t) AND has({p17:Array(String)}, i), target_types, target_ids))
  AND (has(mapKeys(metadata), {p18:String}) AND hasAny(mapValues(metadata), {p19:Array(String)}) AND arrayExists((k, v) -> k = {p18:String} AND has({p19:Array(String)}, v), mapKeys(metadata), mapValues(metadata)))
  AND (has(mapKeys(metadata), {p20:String}) AND hasAny(mapValues(metadata), {p21:Array(String)}) AND arrayExists((k, v) -> k = {p20:String} AND has({p21:Array(String)}, v), mapKeys(metadata), mapValues(metadata)))
ORDER BY occurred_at DESC, id DESC
LIMIT {p22:UInt32}
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 4
-- p0 = ab0000000000000000000000000000cd
-- p1 = 1767225600000001
-- p2 = 01000000000000000000000000000002
-- p3 = 1767225600000000
-- p4 = 1767312000000001
-- p5 = 1767398400000000
-- p6 = 1767484800000000
-- p7 = deployment.%
-- p8 = [100%_\ user]
-- p9 = [c]
-- p10 = [a1 a2]
-- p11 = [t]
-- p12 = [r]
-- p13 = [api-gateway]
-- p14 = [s]
-- p15 = [acme]
-- p16 = [invoice]
-- p17 = [i-1]
-- p18 = a
-- p19 = [it's]
-- p20 = b.c
-- p21 = [1 2]
-- p22 = 26
