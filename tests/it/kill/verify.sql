-- What must not be, whatever has happened: each row names one such thing. To be asked when nothing moves.
select 'a job in two places' as what, num from live group by num having count(*) > 1
union all
select 'a job in no place', num from accepted
where not exists (select from live where live.num = accepted.num) and not exists (select from outcome where outcome.num = accepted.num)
union all
select 'a place without a job', num from live where not exists (select from accepted where accepted.num = live.num)
union all
select 'two outcomes of one run', num from outcome group by num, run having count(*) > 1
union all
select 'an outcome of a run that goes on', num from live join outcome using (num, run)
union all
select 'a unique key without an unfinished job', num from uniq where not exists (select from live where live.num = uniq.num)
union all
select 'progress without a job', num from progress where not exists (select from accepted where accepted.num = progress.num)
union all
select 'a failure without a job', num from failure where not exists (select from accepted where accepted.num = failure.num)
union all
select 'counts that are not those of the jobs', id::int8 from line
left join (
  select line, sum(scheduled) as scheduled, sum(queued) as queued, sum(running) as running,
         sum(backing_off) as backing_off, sum(bytes) as bytes
  from tally group by line) t on t.line = id
left join (
  select line, count(*) filter (where state = 1) as scheduled, count(*) filter (where state = 2) as queued,
         count(*) filter (where state = 3) as running, count(*) filter (where state = 4) as backing_off,
         sum(bytes) as bytes
  from live group by line) j on j.line = id
where (line.scheduled + coalesce(t.scheduled, 0), line.queued + coalesce(t.queued, 0),
       line.running + coalesce(t.running, 0), line.backing_off + coalesce(t.backing_off, 0),
       line.bytes + coalesce(t.bytes, 0))
   is distinct from
      (coalesce(j.scheduled, 0), coalesce(j.queued, 0), coalesce(j.running, 0), coalesce(j.backing_off, 0),
       coalesce(j.bytes, 0))
