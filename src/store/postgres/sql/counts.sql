-- The lines with their counts.
select l.id, l.queue, l.kind,
  (l.scheduled + coalesce(t.scheduled, 0))::int8, (l.queued + coalesce(t.queued, 0))::int8,
  (l.running + coalesce(t.running, 0))::int8, (l.backing_off + coalesce(t.backing_off, 0))::int8,
  (l.succeeded + coalesce(t.succeeded, 0))::int8, (l.failed + coalesce(t.failed, 0))::int8,
  (l.cancelled + coalesce(t.cancelled, 0))::int8, (l.expired + coalesce(t.expired, 0))::int8,
  (l.bytes + coalesce(t.bytes, 0))::int8 as bytes
from line l left join (
  select line, sum(scheduled) as scheduled, sum(queued) as queued, sum(running) as running,
         sum(backing_off) as backing_off, sum(succeeded) as succeeded, sum(failed) as failed,
         sum(cancelled) as cancelled, sum(expired) as expired, sum(bytes) as bytes
  from tally group by line) t on t.line = l.id
order by l.id
