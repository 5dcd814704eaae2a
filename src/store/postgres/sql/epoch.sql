-- Begins a new epoch if the newest one began on another server: on another system, or on another timeline of it, where the
-- end of the log may be missing. Or if that is asked for ($1). Under the lane lock, in a statement of its own.
--
-- Numbers go on far beyond all that the missing end can have used: no position, no fence and no number of a job is given a
-- second time. Leases hold at least until then ($2): nobody could renew them meanwhile.
with newest as materialized (
  select * from epoch order by first desc limit 1),
begun as materialized (
  select s.system, s.timeline,
         greatest(f.last, coalesce((select seq from done order by seq desc limit 1), 0)) as ended,
         case when exists (select from newest)
           then greatest(s.timeline, (greatest(d.last_value, g.last_value, n.last_value) >> 40) + 1) << 40
           else 0 end as first
  from server s, feed f, done_seq d, fence g, job_num n
  where $1 or not exists (select from newest e where (e.system, e.timeline) = (s.system, s.timeline))),
noted as (
  insert into epoch (first, ended, system, timeline)
  select first, case when first = 0 then 0 else ended end, system, timeline from begun),
forgotten as (
  -- The feed begins beyond them.
  delete from epoch e where exists (select from begun) and exists (
    select from epoch next where next.first > e.first and next.first <= (select start from feed))),
moved as (
  update feed set last = (select first from begun) where exists (select from begun where first > 0)),
bundles as (
  update bundle set until = $2 where until < $2 and exists (select from begun where first > 0)),
spared as (
  update lease set until = $2 where until < $2 and exists (select from begun where first > 0))
select setval('done_seq', first), setval('fence', first), setval('job_num', first) from begun where first > 0
