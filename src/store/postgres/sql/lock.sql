-- Keeps others from changing these final jobs at the same time.
select num from job where num = any ($1::int8[]) order by num for update
