-- The newest outcomes of jobs that are final, after a position and up to one.
select d.seq, d.num from (select seq, num, version from done where seq > $1 and seq <= $2 order by seq) d
where (select num from live where num = d.num limit 1) is null
  and (select max(version) from done where num = d.num) = d.version
limit $3
