-- Looks up what a submit names: known request ids (1), ids that callers have named (2), ids that may have been drawn (3),
-- held unique keys (4). `at` is the place of the item. A job whose last outcome was removed is not there. $12: as in
-- jobs.sql.
select 1 as sort, q.at, r.num, r.job_id, r.asked, r.own_id,
  coalesce((select num from live where num = r.num limit 1),
    (select seq from done where block = (select block from job_of(r.num)) and r.num = any (nums) limit 1),
    (select fence from seat_of(r.num))) is not null as is_there
from unnest($1::int8[], $2::text[], $3::text[]) as q (at, caller, request_id), lateral (
  select * from request where caller = q.caller and request_id = q.request_id and until + 0 > $9 limit 1) r
union all
select 2, q.at, o.num, null, null, null,
  coalesce((select num from live where num = o.num limit 1),
    (select seq from done where block = (select block from job_of(o.num)) and o.num = any (nums) limit 1),
    (select fence from seat_of(o.num))) is not null
from unnest($4::int8[], $5::text[]) as q (at, id), lateral (select num from own where id = q.id limit 1) o
union all
select 3, q.at, j.num, null, null, null,
  coalesce((select num from live where num = j.num limit 1),
    (select seq from done where block = j.first and j.num = any (nums) limit 1),
    (select fence from seat_of(j.num))) is not null
from unnest($10::int8[], $11::text[], $12::text[]) as q (at, id, lowest), lateral (
  select first, first + array_position(ids, q.id) - 1 as num from job
  where low <= q.id and low >= q.lowest and high >= q.id and q.id = any (ids) order by first + 0 desc limit 1) j
union all
select 4, q.at, u.num, null, null, null, true
from unnest($6::int8[], $7::text[], $8::text[]) as q (at, queue, key), lateral (
  select num from uniq where queue = q.queue and key = q.key limit 1) u
