-- Accepts new jobs, in their order, and remembers the request ids of these and of repeats. Those in state 3 are leased at
-- once, as claim.sql does; some of them ($32) in a bundle. Answers with the numbers of the new jobs, in their order, and the
-- fences of those leases. Whoever took a name meanwhile makes it fail as a whole (unique_violation): then the names are
-- looked up again.
with numbered as materialized (
  -- As they come from the arrays: in their order.
  select nextval('job_num') as num, u.* from unnest(
    $1::text[], $2::int4[], $3::int4[], $4::text[], $5::bytea[], $6::text[], $7::int4[], $8::int8[], $9::int8[],
    $10::int8[], $11::int8[], $12::int8[], $13::int8[], $14::text[], $15::text[], $25::bool[], $32::bool[])
  with ordinality as u (
    id, line, priority, content_type, payload, options, state, due, rank,
    wake, start_by, end_by, retention, unique_queue, unique_key, is_own, is_bundled, ord)),
span as materialized (select max(num) - min(num) < 65536 as is_near from numbered),
jobs as (
  insert into job (num, id, line, priority, submitted, content_type, payload, options)
  select num, id, line, priority, $16, content_type, payload, options from numbered),
to_ready as (
  insert into ready (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence)
  select num, line, state, 1, 0, 1, priority, due, rank, wake, start_by, end_by, length(payload), retention, 0
  from numbered where state = 2),
to_waiting as (
  insert into waiting (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                       retention, fence)
  select num, line, state, 1, 0, 1, priority, due, rank, wake, start_by, end_by, length(payload), retention, 0
  from numbered where state = 1),
leased as (
  insert into lease (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence, worker, replica, started, until, claim)
  select num, line, state, 1, 1, 2, priority, due, rank, end_by, null, end_by, length(payload),
         retention, nextval('fence'), $28, $29, $16, $30, $31
  from numbered where state = 3 and not (is_bundled and (select is_near from span))
  returning num, fence),
bundled as (
  insert into bundle (fence, first, last, nums, open, running, worker, replica, started, until, claim)
  select nextval('fence'), min(num), max(num), array_agg(num order by ord), repeat('1', count(*)::int4)::varbit, count(*),
         $28, $29, $16, $30, $31
  from numbered where is_bundled and (select is_near from span) having count(*) > 0
  returning fence),
held as (
  -- In the order of keys: nobody waits in a circle.
  insert into uniq (queue, key, num)
  select unique_queue, unique_key, num from numbered where unique_key is not null order by unique_queue, unique_key),
stale as (
  -- Ids of jobs that are not there any more.
  delete from own where id = any ($26::text[]) and ((id, num) in (select * from unnest($26::text[], $27::int8[]))) is true
  returning 1),
owned as (
  insert into own (id, num)
  select id, num from numbered
  where is_own and (select count(*) from stale) >= 0
  order by id),
requests as materialized (
  select * from unnest($17::text[], $18::text[], $19::int8[], $20::int8[], $21::text[], $22::bytea[], $23::text[])
  as r (caller, request_id, ord, num, job_id, asked, own_id)),
over as (
  delete from request where ctid = any (array (
    select found.ctid from requests r, lateral (
      select ctid from request where caller = r.caller and request_id = r.request_id and until + 0 <= $16 limit 1) found))
  returning 1),
remembered as (
  insert into request (caller, request_id, num, job_id, asked, own_id, until)
  select caller, request_id, coalesce(r.num, n.num), job_id, asked, own_id, $24
  from requests r left join numbered n using (ord)
  -- Those that are over have left by then.
  where (select count(*) from over) >= 0
  order by caller, request_id),
counted as (
  insert into tally (line, scheduled, queued, running, bytes)
  select line, count(*) filter (where state = 1), count(*) filter (where state = 2), count(*) filter (where state = 3),
         sum(length(payload))
  from numbered group by line)
select num, coalesce(fence, (select fence from bundled)) as fence, fence is null as is_bundled
from numbered left join leased using (num) order by ord
