SELECT count() FROM events WHERE workspace = unhex({p0:String})
  AND (occurred_at >= fromUnixTimestamp64Micro({p1:Int64}, 'UTC'))
  AND (occurred_at <= fromUnixTimestamp64Micro({p2:Int64}, 'UTC'))
  AND (recorded_at >= fromUnixTimestamp64Micro({p3:Int64}, 'UTC'))
  AND (recorded_at <= fromUnixTimestamp64Micro({p4:Int64}, 'UTC'))
  AND (action LIKE {p5:String} OR action IN {p6:Array(String)})
  AND (action_category IN {p7:Array(String)})
  AND (actor_id IN {p8:Array(String)})
  AND (actor_type IN {p9:Array(String)})
  AND (resource IN {p10:Array(String)})
  AND (resource_id IN {p11:Array(String)})
  AND (session_id IN {p12:Array(String)})
  AND (tenant_id IN {p13:Array(String)})
  AND (arrayExists((t, i) -> has({p14:Array(String)}, t) AND has({p15:Array(String)}, i), target_types, target_ids))
  AND (has(mapKeys(metadata), {p16:String}) AND hasAny(mapValues(metadata), {p17:Array(String)}) AND arrayExists((k, v) -> k = {p16:String} AND has({p17:Array(String)}, v), mapKeys(metadata), mapValues(metadata)))
  AND (has(mapKeys(metadata), {p18:String}) AND hasAny(mapValues(metadata), {p19:Array(String)}) AND arrayExists((k, v) -> k = {p18:String} AND has({p19:Array(String)}, v), mapKeys(metadata), mapValues(metadata)))
SETTINGS max_threads = 1, max_memory_usage = 2000000000, max_execution_time = 0.25, max_rows_to_read = 500000
-- p0 = ab0000000000000000000000000000cd
-- p1 = 1767225600000000
-- p2 = 1767312000000001
-- p3 = 1767398400000000
-- p4 = 1767484800000000
-- p5 = deployment.%
-- p6 = [100%_\ user]
-- p7 = [c]
-- p8 = [a1 a2]
-- p9 = [t]
-- p10 = [r]
-- p11 = [api-gateway]
-- p12 = [s]
-- p13 = [acme]
-- p14 = [invoice]
-- p15 = [i-1]
-- p16 = a
-- p17 = [it's]
-- p18 = b.c
-- p19 = [1 2]
