-- The partitions of both tables in order, and the number that each has come to.
select s.of, s.position,
       array (select low from part p where p.of = s.of order by low) as low,
       array (select high from part p where p.of = s.of order by low) as high
from (
  select 'done' as of, last_value as position from done_seq
  union all select 'job', last_value from job_num) s
