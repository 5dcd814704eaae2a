-- A page of the feed: outcomes after a position ($1) among at most so many ($2), ended once their outputs come to so many
-- bytes ($3). If there are lines to choose from ($4), it has only those of these and of later ones ($5). The first columns
-- are of the feed as a whole, in the same snapshot. `looked` is how many rows there were to look at, `seen` the last of
-- them, `wanted` how many were of these lines, whatever their bytes.
with whole as materialized (
  select start, cut, greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) as head,
         (select finished from done where seq > feed.start order by seq limit 1) as oldest
  from feed),
page as materialized (
  -- As the rows come: in their order, and no more of them than it takes. Of each but the first there is an outcome.
  select d.seq - cardinality(d.nums) + spot as position, u.spot, u.num, u.bytes, d.seq, d.block, d.run, d.attempt, d.version,
         d.state, d.line, d.worker, d.started, d.finished, d.keep_until, d.error, d.content_type
  from (select * from done where seq > $1 order by seq limit $2::int8 + 1) d,
    unnest(d.nums, d.sizes) with ordinality as u (num, bytes, spot)
  where d.seq - cardinality(d.nums) + spot > $1 and u.num is not null limit $2),
chosen as materialized (select * from page where $4::int4[] is null or line = any ($4) or line > $5),
short as materialized (
  select * from (
    select *, sum(bytes) over (order by position rows between unbounded preceding and 1 preceding) as before from chosen) x
  where coalesce(before, 0) < $3::int8)
select w.*, (select count(*) from page) as looked, (select max(position) from page) as seen,
       (select count(*) from chosen) as wanted, s.position as place,
       s.*, s.content_type as output_type, o.output, s.bytes::int8 as output_size,
       j.ids[s.num - j.first + 1] as id, j.priority, j.submitted, j.content_type as input_type,
       j.sizes[s.num - j.first + 1]::int8 as size, j.options,
       f.failures
from whole w
left join short s on true
left join lateral (select outputs[s.spot] as output from done where seq = s.seq limit 1) o on true
left join lateral (select * from job where first = s.block limit 1) j on true
left join lateral (
  select json_agg(x)::text as failures from (
    select run, attempt, worker, started, finished, error from failure
    where num = s.num and run = s.run and s.worker is null
    order by attempt desc limit 1) x) f on s.num is not null
order by s.position
