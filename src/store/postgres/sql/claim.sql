-- Leases due jobs: of each turn (the lines of a queue that were asked for) so many, in order of rank. It looks in spans of
-- ranks that do not overlap. First without locks, how many of them lie in each span; then it takes the first ones there that
-- nobody else is taking. Ends once their inputs come to so many bytes. The leases carry a number ($11), by which they are
-- found if the answer is lost. If they may be in one row ($12), those are which are like all others.
--
-- Answers with the jobs, and what the next attempt should hear of the last: a job of version 2 has no past. `upto` is the rank
-- up to which the first look has found all that its turn may have; null if there was not that much. If others were taking all
-- of it, there is one row without a job.
with asked as materialized (
  select * from unnest($1::int4[], $2::int4[], $3::int8[], $9::int8[], $10::int8[]) as u (line, turn, quota, low, high)),
head as materialized (
  select line, turn, quota, low, high, count(*) as most, max(rank) as last from (
    select q.*, r.rank, row_number() over (partition by q.turn order by r.rank, r.num) as place
    from asked q, lateral (
      select rank, num from ready
      where line = q.line and rank between q.low and q.high and (wake is null or wake > $4)
      order by rank, num + 0 limit q.quota) r
    ) x
  where place <= quota group by line, turn, quota, low, high),
reach as materialized (
  select turn, case when sum(most) >= max(quota) then max(last) end as upto from head group by turn),
pick as materialized (
  select h.turn, r.* from head h, lateral (
    select num, rank, bytes from ready
    where line = h.line and rank between h.low and h.high and (wake is null or wake > $4)
    order by rank, num + 0 limit h.most for update skip locked) r),
kept as materialized (
  select num from (
    select num, sum(bytes) over (order by turn, rank, num rows between unbounded preceding and 1 preceding) as before
    from pick) x
  where coalesce(before, 0) < $5::int8),
gone as (
  delete from ready where num = any (array (select num from kept))
  returning *, $12 and version = 1 and end_by is null and retention is null
    and (select max(num) - min(num) < 65536 from kept) as is_bundled),
held as (
  insert into lease (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence, worker, replica, started, until, claim)
  select num, line, 3, run, attempt + 1, version + 1, priority, due, rank, end_by, null, end_by, bytes,
         retention, nextval('fence'), $6, $7, $4, $8, $11
  from gone where not is_bundled
  returning *),
bundled as (
  insert into bundle (fence, first, last, nums, open, running, worker, replica, started, until, claim)
  select nextval('fence'), min(num), max(num), array_agg(num order by num), repeat('1', count(*)::int4)::varbit, count(*),
         $6, $7, $4, $8, $11
  from gone where is_bundled having count(*) > 0
  returning fence),
leased as (
  select num, line, state, run, attempt, version, priority, due, rank, end_by, retention, fence,
         null::int4 as place, null::int4 as places
  from held
  union all
  select num, line, 3, 1, 1, 2, priority, due, rank, null, null, (select fence from bundled),
         (row_number() over (order by num) - 1)::int4, (count(*) over ())::int4
  from gone where is_bundled),
counted as (
  insert into tally (line, queued, running) select line, -count(*), count(*) from gone group by line)
select t.turn, t.upto, l.num, l.line, l.state, l.run, l.attempt, l.version, l.priority, l.due, null::int8 as start_by,
       l.end_by, l.retention, l.fence, l.place, l.places,
       $6 as worker, $4::int8 as started, $8::int8 as until, null as cancel_reason,
       j.block, j.id, j.submitted, j.content_type, j.payload, j.size::int8 as size, j.options,
       n.at, n.fraction, n.note, n.details_type, n.details,
       f.failures
from reach t
  left join (leased l join pick p using (num)) on p.turn = t.turn
  left join job_of(l.num) j on true
  left join lateral (
    select at, fraction, note, content_type as details_type, details from progress
    where num = l.num and l.version > 2 limit 1) n on true
  left join lateral (
    select json_agg(x)::text as failures from (
      select run, attempt, worker, started, finished, error from failure
      where num = l.num and run = l.run and l.version > 2
      order by attempt desc limit 1) x) f on true
order by t.turn, l.rank, l.num
