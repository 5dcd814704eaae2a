-- How many due jobs each of these lines has, up to a number. Takes no locks.
select q.line, (
  select count(*) from (
    select from ready where line = q.line and (wake is null or wake > $2) order by rank, num + 0 limit $3) r) as due
from unnest($1::int4[]) as q (line)
