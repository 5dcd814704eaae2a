-- Adds what was tallied to the counts of the lines; one replica at a time. At most so many rows ($1): answers with how many.
with taken as materialized (
  select ctid from tally where pg_try_advisory_xact_lock('tally'::regclass::oid::int4, 0) limit $1),
gone as (
  delete from tally where ctid = any (array (select ctid from taken)) returning *),
sums as materialized (
  select line, sum(scheduled) as scheduled, sum(queued) as queued, sum(running) as running,
         sum(backing_off) as backing_off, sum(succeeded) as succeeded, sum(failed) as failed,
         sum(cancelled) as cancelled, sum(expired) as expired, sum(bytes) as bytes
  from gone group by line),
folded as (
  update line l set
    scheduled = l.scheduled + s.scheduled, queued = l.queued + s.queued, running = l.running + s.running,
    backing_off = l.backing_off + s.backing_off, succeeded = l.succeeded + s.succeeded, failed = l.failed + s.failed,
    cancelled = l.cancelled + s.cancelled, expired = l.expired + s.expired, bytes = l.bytes + s.bytes
  from sums s where l.id = s.line)
select count(*) as rows from gone
