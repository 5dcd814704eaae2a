-- Keeps others from changing these final jobs at the same time.
select j.num from (select num from unnest($1::int8[]) as u (num) order by num) u, lateral (
  select num from job where num = u.num limit 1 for update) j
