-- The partitions of `job` that no more will come to, and how much there is left of their jobs, counted up to a number ($1).
-- Unfinished ones only where there are few outcomes: an index that rows come to and go from by the thousand is slow to read.
select p.low, p.high, d.outcomes + case when d.outcomes < $1 then (
    select count(*) from (select from unfinished where num >= p.low and num < p.high limit $1) x) else 0 end as rest
from part p, lateral (
  select count(*) as outcomes from (select from done where block >= p.low and block < p.high limit $1) x) d
where p.of = 'job' and p.high <= (select last_value from job_num)
order by p.low
