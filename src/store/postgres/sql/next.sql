-- When time changes something next: for the leases of others see elapsed.sql.
select least(
  (select wake from ready where wake is not null order by wake limit 1),
  (select wake from waiting order by wake limit 1),
  (select min(least(until + case when replica = $1 then 0 else 1000 end, end_by)) from lease)) as next
