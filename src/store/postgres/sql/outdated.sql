-- Outcomes whose retention is over, at most so many: of each job the newest of them. Partitions that will be dropped as a
-- whole ($3) are left alone, but for outcomes of later runs: with these go the older ones of their jobs. (Each of them has a
-- row of its own.)
select num, max(seq) as upto, count(*) as outcomes from (
  select num, seq from outdated($1, $2, $3)
  union
  (select nums[1], seq from done where run > 1 and keep_until + 0 <= $1 order by keep_until + 0 limit $2)) x
group by num
