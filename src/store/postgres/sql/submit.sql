-- Accepts new jobs, in their order, as blocks, and remembers the request ids of these and of repeats. Some are leased at
-- once, as claim.sql does: those in a bundle ($16, $17), and of those that have a row of their own ($18 to $29) the ones in
-- state 3. A job is named by its block, from 1, and its place there, from 0. Answers with the blocks in their order, each with
-- its first number and the fence of the bundle if there is one, and with the leases beside that. Whoever took a name meanwhile
-- makes it fail as a whole (unique_violation): then the names are looked up again.
with blocks as materialized (
  -- As they come from the arrays: in their order.
  select nextval('job_num') as first, u.* from unnest(
    $3::int4[], $4::int4[], $5::int4[], $6::int4[], $7::text[], $8::text[], $9::text[], $10::text[])
  with ordinality as u (beginning, ending, line, priority, content_type, options, low, high, ord)),
drawn as materialized (
  select array_agg(first order by ord) as firsts, max(first) - min(first) <= 65536 - 32 as is_near from blocks),
jobs as (
  insert into job (first, ids, line, priority, submitted, content_type, payloads, sizes, options, low, high)
  select first, ($1::text[])[beginning:ending], line, priority, $11, content_type, ($2::bytea[])[beginning:ending],
         ($53::int4[])[beginning:ending], options, low, high
  from blocks),
bundled as (
  insert into bundle (fence, first, last, nums, open, running, worker, replica, started, until, claim)
  select nextval('fence'), min(num), max(num), array_agg(num order by ord), repeat('1', count(*)::int4)::varbit, count(*),
         $12, $13, $11, $14, $15
  from (
    select (select firsts from drawn)[block] + place as num, ord
    from unnest($16::int4[], $17::int4[]) with ordinality as u (block, place, ord)
    where (select is_near from drawn)) x
  having count(*) > 0
  returning fence),
apart as materialized (
  select (select firsts from drawn)[block] + place as num, u.* from unnest(
    $18::int4[], $19::int4[], $20::int4[], $21::int4[], $22::int4[], $23::int8[], $24::int8[], $25::int8[], $26::int8[],
    $27::int8[], $28::int8[], $29::int8[])
  as u (block, place, line, state, priority, due, rank, wake, start_by, end_by, bytes, retention)
  union all
  -- Numbers too far apart for one bundle.
  select first + place, block, place, line, 3, priority, $11, 0, null, null, null,
         ($53::int4[])[beginning + place], null
  from unnest($16::int4[], $17::int4[]) as u (block, place) join blocks on ord = block
  where not (select is_near from drawn)),
to_ready as (
  insert into ready (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence)
  select num, line, state, 1, 0, 1, priority, due, rank, wake, start_by, end_by, bytes, retention, 0
  from apart where state = 2),
to_waiting as (
  insert into waiting (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                       retention, fence)
  select num, line, state, 1, 0, 1, priority, due, rank, wake, start_by, end_by, bytes, retention, 0
  from apart where state = 1),
leased as (
  insert into lease (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence, worker, replica, started, until, claim)
  select num, line, state, 1, 1, 2, priority, due, rank, end_by, null, end_by, bytes,
         retention, nextval('fence'), $12, $13, $11, $14, $15
  from apart where state = 3
  returning num, fence),
held as (
  -- In the order of keys: nobody waits in a circle.
  insert into uniq (queue, key, num)
  select queue, key, (select firsts from drawn)[block] + place
  from unnest($30::int4[], $31::int4[], $32::text[], $33::text[]) as u (block, place, queue, key) order by queue, key),
stale as (
  -- Ids of jobs that are not there any more.
  delete from own where id = any ($34::text[]) and ((id, num) in (select * from unnest($34::text[], $35::int8[]))) is true
  returning 1),
owned as (
  insert into own (id, num)
  select id, (select firsts from drawn)[block] + place
  from unnest($36::int4[], $37::int4[], $38::text[]) as u (block, place, id)
  where (select count(*) from stale) >= 0
  order by id),
requests as materialized (
  select * from unnest(
    $39::text[], $40::text[], $41::int4[], $42::int4[], $43::int8[], $44::text[], $45::bytea[], $46::text[])
  as r (caller, request_id, block, place, num, job_id, asked, own_id)),
over as (
  delete from request where ctid = any (array (
    select found.ctid from requests r, lateral (
      select ctid from request where caller = r.caller and request_id = r.request_id and until + 0 <= $11 limit 1) found))
  returning 1),
remembered as (
  insert into request (caller, request_id, num, job_id, asked, own_id, until)
  select caller, request_id, coalesce(num, (select firsts from drawn)[block] + place), job_id, asked, own_id, $47
  from requests
  -- Those that are over have left by then.
  where (select count(*) from over) >= 0
  order by caller, request_id),
counted as (
  insert into tally (line, scheduled, queued, running, bytes)
  select * from unnest($48::int4[], $49::int8[], $50::int8[], $51::int8[], $52::int8[]))
select ord, first as num, (select fence from bundled) as fence from blocks
union all
select null, num, fence from leased
