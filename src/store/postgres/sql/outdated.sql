-- Outcomes whose retention is over, at most so many: of each job the newest of them.
select num, max(seq) as upto, count(*) as outcomes
from (select num, seq from done where keep_until <= $1 order by keep_until limit $2) x group by num
