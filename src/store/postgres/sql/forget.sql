-- Request ids whose time is over, at most so many.
with gone as (
  delete from request where ctid = any (array (
    select ctid from request where until <= $1 order by until limit $2 for update skip locked))
  returning 1)
select count(*) as forgotten from gone
