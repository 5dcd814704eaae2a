-- Removes outcomes of jobs up to a position, and each job that has none left and is not unfinished, with everything but
-- its request ids. With a version ($3) only if that is still the newest. Under the locks of the jobs. The feed remembers
-- how far it had come. Answers with the jobs that were removed.
with asked as materialized (
  select * from unnest($1::int8[], $2::int8[], $3::int8[]) as u (num, upto, version)),
meant as materialized (
  select a.num, a.upto,
    (select num from live where num = a.num limit 1) is null
    and coalesce((select max(seq + 0) from done where num = a.num) <= a.upto, true) as is_last
  from asked a
  where a.version is null or (
    (select num from live where num = a.num limit 1) is null
    and (select max(version) from done where num = a.num) = a.version)),
noted as (
  update feed set last = greatest(last, (select seq from done order by seq desc limit 1))
  where exists (select from meant)),
gone as materialized (
  select d.seq from meant m, lateral (select seq from done where num = m.num and seq + 0 <= m.upto offset 0) d),
outcomes as (
  -- Between the first and the last: only the partitions that hold them are looked at. So below.
  delete from done where seq = any (array (select seq from gone))
    and seq >= (select min(seq) from gone) and seq <= (select max(seq) from gone)),
over as materialized (select num from meant where is_last),
failures as (delete from failure where num = any (array (select num from over))),
told as (delete from progress where num = any (array (select num from over))),
owned as (delete from own where num = any (array (select num from over))),
jobs as (
  delete from job where num = any (array (select num from over))
    and num >= (select min(num) from over) and num <= (select max(num) from over)
  returning num)
select num from jobs
