-- When time changes something next: for the leases of others ($2) see elapsed.sql.
select least(
  (select wake from ready where wake is not null order by wake limit 1),
  (select wake from waiting order by wake limit 1),
  (select min(least(until + case when replica = $1 then 0 else $2::int8 end, end_by)) from lease),
  (select min(until + case when replica = $1 then 0 else $2::int8 end) from bundle where running > 0)) as next
