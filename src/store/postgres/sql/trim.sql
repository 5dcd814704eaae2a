-- Moves the beginning of the feed past outcomes that are too old ($1), or too many ($2 are kept). Looks at no more than so
-- many ($3); answers with how many of those were too old.
with old as materialized (
  select seq, finished from (
    select seq, finished from done where seq > (select start from feed) order by seq limit $3) x
  where finished <= $1),
span as materialized (
  -- The positions of each epoch, and how many come after them in later ones.
  select first, until, coalesce(sum(until - first) over later, 0)::int8 as later from (
    select first, coalesce(lead(ended) over (order by first), (
      select greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) from feed)) as until
    from epoch) x
  window later as (order by first desc rows between unbounded preceding and 1 preceding)),
upto as materialized (
  select greatest(
    (select max(seq) from old),
    (select until - ($2::int8 - later) from span where later < $2 and later + until - first >= $2)) as seq),
moved as (
  update feed set start = (select seq from upto), cut = greatest(cut, coalesce((
      select finished from done
      where seq < (select seq from upto) + 32 and seq - cardinality(nums) < (select seq from upto)
      order by seq desc limit 1), 0))
  where start < (select seq from upto))
select count(*) as old from old
