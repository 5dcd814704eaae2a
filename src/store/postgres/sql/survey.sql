-- What the partitions of `done` hold, and whether more may come.
select s.*, s.high <= h.head as is_closed
from (select greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) as head from feed) h, survey() s
