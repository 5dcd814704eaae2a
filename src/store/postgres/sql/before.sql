-- How far the feed goes on from one position ($1) up to another ($2) before it comes to an outcome that is later than a time
-- ($4), and by how many outcomes: at most so many ($3).
with page as materialized (
  select seq, finished from done where seq > $1 and seq <= $2 order by seq limit $3)
select max(seq) as upto, count(*) as outcomes from page
where seq < coalesce((select min(seq) from page where finished > $4), $2::int8 + 1)
