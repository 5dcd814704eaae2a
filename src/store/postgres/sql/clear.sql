-- Removes what is left beside `job` of jobs that are not there any more, between two numbers, at most so much of each sort.
with owned as (
  delete from own where ctid = any (array (
    select ctid from own where num >= $1 and num < $2 order by num limit $3)) returning 1),
failures as (
  delete from failure where ctid = any (array (
    select ctid from failure where num >= $1 and num < $2 order by num limit $3)) returning 1),
-- A renewal may bring progress while its job ends.
told as (
  delete from progress where ctid = any (array (
    select ctid from progress where num >= $1 and num < $2 order by num limit $3)) returning 1)
select (select count(*) from owned) + (select count(*) from failures) + (select count(*) from told) as cleared
