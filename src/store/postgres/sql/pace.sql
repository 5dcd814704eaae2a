-- How many outcomes ($1: 'done') or jobs there were from a number on ($2), and in how many milliseconds; and for how long
-- the newest outcomes are kept.
with numbers as materialized (
  (select seq as num, finished as at from done where $1 = 'done' and seq >= $2 order by seq limit 1)
  union all (select seq, finished from done where $1 = 'done' order by seq desc limit 1)
  union all (select first, submitted from job where $1 = 'job' and first >= $2 order by first limit 1)
  union all (select first, submitted from job where $1 = 'job' order by first desc limit 1))
select max(num) - min(num) as count, max(at) - min(at) as millis, (
  select percentile_disc(0.5) within group (order by keep_until - finished) from (
    select keep_until, finished from done order by seq desc limit 100) x) as retention
from numbers
