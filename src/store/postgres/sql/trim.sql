-- Moves the beginning of the feed past outcomes that are too old ($1), or too many ($2 are kept). Looks at no more than so
-- many ($3); answers with how many of those were too old.
with old as materialized (
  select seq, finished from (
    select seq, finished from done where seq > (select start from feed) order by seq limit $3) x
  where finished <= $1),
upto as materialized (
  select greatest(
    (select max(seq) from old),
    (select greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) - $2 from feed)) as seq),
moved as (
  update feed set start = (select seq from upto), cut = greatest(cut, coalesce((
      select finished from done where seq <= (select seq from upto) order by seq desc limit 1), 0))
  where start < (select seq from upto))
select count(*) as old from old
