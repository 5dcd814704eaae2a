-- How many due jobs there are in each of these spans of lines, up to a number. Takes no locks.
select q.line, (
  select count(*) from (
    select from ready
    where line = q.line and rank between q.low and q.high and (wake is null or wake > $2)
    order by rank, num + 0 limit $3) r) as due
from unnest($1::int4[], $4::int8[], $5::int8[]) as q (line, low, high)
