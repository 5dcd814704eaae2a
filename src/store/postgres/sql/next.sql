-- When time changes something next.
select least(
  (select wake from ready where wake is not null order by wake limit 1),
  (select wake from waiting order by wake limit 1),
  (select min(least(until, end_by)) from lease)) as next
