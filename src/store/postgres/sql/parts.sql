-- The partitions of both tables in order, and the number that each has come to.
select s.of, s.position, p.low, p.high
from (
  select 'done' as of, last_value as position from done_seq
  union all select 'job', last_value from job_num) s,
  lateral (
    select coalesce(array_agg(low order by low), '{}') as low, coalesce(array_agg(high order by low), '{}') as high
    from part where part.of = s.of) p
