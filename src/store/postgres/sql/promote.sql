-- Jobs that have become due go to their lines, at most so many ($2). What time has ended is left to the rules. Any replica
-- may do it: each takes those that no other is taking. Ids only if somebody wants to hear of them ($3).
with due as materialized (
  select num from waiting
  where wake <= $1 and due <= $1 and (start_by is null or start_by > $1) and (end_by is null or end_by > $1)
  order by wake limit $2 for update skip locked),
gone as (delete from waiting where num = any (array (select num from due)) returning *),
to_ready as (
  insert into ready (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence)
  select num, line, 2, run, attempt, version + 1, priority, due, rank, least(start_by, end_by), start_by, end_by, bytes,
         retention, fence
  from gone),
counted as (
  insert into tally (line, scheduled, queued, backing_off)
  select line, -count(*) filter (where state = 1), count(*), -count(*) filter (where state = 4) from gone group by line)
select case when $3 then (select id from job_of(gone.num)) end as id, line, rank from gone
