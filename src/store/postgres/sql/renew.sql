-- Prolongs leases (those without a new end stay as they are) and stores the newest progress. Whoever ($9) prolongs one has
-- it from its worker, and knows more of it from then on than the replica that gave it. Answers with those that are held,
-- and whether a cancel was asked for.
with asked as materialized (
  select * from unnest(
    $1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::float8[], $6::text[], $7::text[], $8::bytea[])
  as u (num, fence, until, at, fraction, note, content_type, details)),
held as (
  update lease set (until, replica) = (
    select coalesce(a.until, lease.until), case when a.until is null then lease.replica else $9 end
    from asked a where a.num = lease.num and a.fence = lease.fence)
  where num = any (array (select num from asked))
    and ((num, fence) in (select num, fence from asked)) is true
  returning num, fence, cancel_reason is not null as cancelled),
told as (
  insert into progress (num, at, fraction, note, content_type, details)
  select a.num, a.at, a.fraction, a.note, a.content_type, a.details
  from asked a join held using (num, fence) where a.at is not null order by a.num
  on conflict (num) do update set at = excluded.at, fraction = excluded.fraction, note = excluded.note,
    content_type = excluded.content_type, details = excluded.details)
select num, fence, cancelled from held
