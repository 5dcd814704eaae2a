-- The newest outcomes of jobs that are final, after a position and up to one.
select d.position as seq, d.num from (
  select seq - cardinality(nums) + place as position, num, block, version
  from (select * from done where seq > $1 and seq < $2::int8 + 32 order by seq) r,
    unnest(nums) with ordinality as u (num, place)) d
where d.position > $1 and d.position <= $2 and d.num is not null
  and (select num from live where num = d.num limit 1) is null
  and (select max(version) from done where block = d.block and d.num = any (nums)) = d.version
limit $3
