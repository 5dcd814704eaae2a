-- Keeps others from changing these final jobs at the same time: takes the locks of their blocks, in order.
select first from job
where first = any (array (select distinct block from unnest($1::int8[]) as u (num), job_of(u.num) j))
order by first for update
