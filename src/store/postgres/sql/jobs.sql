-- Jobs as they are in one snapshot, by number or by id, and the head of the feed in it. `at` is the place in the arrays,
-- the numbers first. Bodies only if asked for: of the input ($3), of the output ($4); $5: the failures of all attempts,
-- otherwise only the last of the present run. $7: of each id the lowest that a block with it may begin with, if a server has
-- drawn it.
select h.head, q.at, j.block, j.num, j.id, j.line, j.priority, j.submitted, j.content_type,
       case when $3 then j.payload end as payload, j.size::int8 as size, j.options,
       l.num is not null as is_live, coalesce(l.state, d.state) as state, coalesce(l.run, d.run) as run,
       coalesce(l.attempt, d.attempt) as attempt, coalesce(l.version, d.version) as version,
       coalesce(l.fence, d.fence) as fence, coalesce(l.worker, d.worker) as worker,
       coalesce(l.started, d.started) as started, l.due, l.start_by, l.end_by, l.retention, l.until,
       l.cancel_reason, l.place, l.places,
       d.seq - cardinality(d.nums) + d.spot as seq, d.finished, d.keep_until, d.error, d.content_type as output_type,
       case when $4 then d.outputs[d.spot] end as output, d.sizes[d.spot]::int8 as output_size,
       n.at as progress_at, n.fraction, n.note, n.details_type, n.details,
       f.failures
from (select greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) as head from feed) h
left join (
  select num, at from unnest($1::int8[]) with ordinality as u (num, at)
  union all
  select j.num, u.at + cardinality($1::int8[]) from unnest($2::text[], $7::text[]) with ordinality as u (id, lowest, at),
    lateral (
      select num from (
        select num from own where id = u.id
        union all
        select first + array_position(ids, u.id) - 1 from job where low <= u.id and low >= u.lowest and high >= u.id) n
      where num is not null order by num desc limit 1) j) q on true
left join job_of(q.num) j on true
left join lateral (
  select live.*, null::int4 as place, null::int4 as places from live where num = j.num
  union all
  select j.num, j.line, 3, 1, 1, 2, j.priority, j.submitted, 0, null, null, null, j.size, null, fence,
         worker, started, until, null, place, places
  from seat_of(j.num)
  limit 1) l on true
left join lateral (
  select *, array_position(nums, j.num) as spot from done
  where block = j.block and j.num = any (nums) and l.num is null
  order by version desc limit 1) d on true
left join lateral (
  select at, fraction, note, content_type as details_type, details from progress where num = l.num limit 1) n on true
left join lateral (
  select json_agg(x order by x.run, x.attempt)::text as failures from (
    select run, attempt, worker, started, finished, error from failure
    where num = j.num and ($5 or run = coalesce(l.run, d.run))
    order by run desc, attempt desc limit case when $5 then $6::int8 else 1 end) x) f on j.num is not null
