-- Unfinished jobs whose time is over in one way or another, but for those that only became due: limits passed, leases run
-- out. At most so many ($2) of each sort. The replica ($3) that gave a lease comes first, and the others so many milliseconds
-- later ($4; null: not at all): it knows whether a worker has ever confirmed it.
(select num from ready where wake <= $1 order by wake limit $2)
union all
(select num from waiting where wake <= $1 and (start_by <= $1 or end_by <= $1) order by wake limit $2)
union all
(select num from lease where until + case when replica = $3 then 0 else $4::int8 end <= $1 or end_by <= $1
 order by until limit $2)
union all
(select num from seat where until + case when replica = $3 then 0 else $4::int8 end <= $1 order by until limit $2)
