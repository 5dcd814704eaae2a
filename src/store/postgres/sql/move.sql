-- Moves jobs from where they are to where they go, each only if it is still as it was when that was decided: in the same
-- state, of the same version, with its lease over if that is the reason, and prolonged by nobody but this process ($29: its
-- numbers) if only that one may. Answers with those that were moved, and the positions of those that ended. The others are
-- left alone.
--
-- Row locks are taken table by table, in the order of numbers; the lane lock comes last. It is held from the first
-- position that is drawn until the commit can be seen, so that whoever sees a position never sees a smaller one appear.
with asked as materialized (
  select * from unnest(
    $1::int8[], $2::int4[], $3::int8[], $4::bool[], $5::int4[], $6::int4[], $7::int4[], $8::int8[], $9::int8[],
    $10::int8[], $11::int8[], $12::int8[], $13::int8[], $14::int8[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::bytea[], $20::int8[], $21::int8[], $22::float8[], $23::text[], $24::text[], $25::bytea[], $28::bool[], $30::int8[])
  with ordinality as u (
    num, was, was_version, must_be_over, becomes, run, attempt, version, due,
    rank, wake, start_by, end_by, fence, cancel_reason, failure, error, content_type,
    output, keep_until, progress_at, fraction, note, details_type, details, must_be_mine, block, ord)),
marked as (
  update lease set version = version + 1,
    cancel_reason = (select a.cancel_reason from asked a where a.num = lease.num)
  where num = any (array (select num from asked where was = 3 and becomes = 3))
    and ((num, version) in (select num, was_version from asked)) is true
  returning num),
of_lease as (
  delete from lease
  where num = any (array (select num from asked where was = 3 and becomes <> 3))
    and ((num, version) in (select num, was_version from asked)) is true
    and (until <= $26 or (num in (select num from asked where not must_be_over)) is true)
    and (replica = any ($29::int8[]) or (num in (select num from asked where not must_be_mine)) is true)
  returning num, line, state, run, attempt, version, priority, bytes, retention, fence, worker, started),
of_ready as (
  delete from ready
  where num = any (array (select num from asked where was = 2))
    and ((num, version) in (select num, was_version from asked)) is true
  returning num, line, state, run, attempt, version, priority, bytes, retention, fence),
of_waiting as (
  delete from waiting
  where num = any (array (select num from asked where was in (1, 4)))
    and ((num, version) in (select num, was_version from asked)) is true
  returning num, line, state, run, attempt, version, priority, bytes, retention, fence),
gone as materialized (
  select * from of_lease
  union all select *, null, null from of_ready
  union all select *, null, null from of_waiting),
moved as materialized (
  select a.*, g.line, g.state, g.priority, g.bytes, g.retention, g.worker, g.started,
         g.run as last_run, g.attempt as last_attempt, g.version as last_version, g.fence as last_fence
  from gone g join asked a using (num)),
to_ready as (
  insert into ready (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence)
  select num, line, becomes, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence
  from moved where becomes = 2),
to_waiting as (
  insert into waiting (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                       retention, fence)
  select num, line, becomes, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence
  from moved where becomes in (1, 4)),
failed as (
  insert into failure (num, run, attempt, worker, started, finished, error)
  select num, last_run, last_attempt, worker, started, $26, failure from moved where failure is not null
  on conflict (num, run, attempt) do update
    set worker = excluded.worker, started = excluded.started, finished = excluded.finished, error = excluded.error),
forgotten as (
  -- All but the newest that are kept; the one above is not seen here yet.
  delete from failure where ctid = any (array (
    select old.ctid from moved m, lateral (
      select ctid from failure where num = m.num order by run desc, attempt desc offset $27::int4 - 1) old
    where m.failure is not null and (m.last_run > 1 or m.last_attempt > $27)))),
told as (
  insert into progress (num, at, fraction, note, content_type, details)
  select num, progress_at, fraction, note, details_type, details from moved
  where progress_at is not null and becomes <= 4
  on conflict (num) do update set at = excluded.at, fraction = excluded.fraction, note = excluded.note,
    content_type = excluded.content_type, details = excluded.details),
lane as materialized (
  select pg_advisory_xact_lock('feed'::regclass::oid::int4, 0)
  from (select count(*) as ends from moved where becomes >= 5) x where ends > 0),
ended as materialized (
  select nextval('done_seq') as seq, m.* from (select m.* from moved m, lane where becomes >= 5 order by ord) m),
to_done as (
  insert into done (seq, block, nums, run, attempt, version, state, line, fence, worker, started, finished, keep_until, error,
                    content_type, outputs, sizes)
  select seq, block, array[num], last_run, last_attempt, last_version + 1, becomes, line, last_fence, worker, started, $26,
         keep_until, error, content_type, array[output], array[coalesce(length(output), 0)]
  from ended),
unheld as (delete from uniq where num = any (array (select num from ended))),
done_with as (delete from progress where num = any (array (select num from ended))),
counted as (
  insert into tally (line, scheduled, queued, running, backing_off, succeeded, failed, cancelled, expired, bytes)
  select line,
    sum((becomes = 1)::int - (state = 1)::int), sum((becomes = 2)::int - (state = 2)::int),
    sum((becomes = 3)::int - (state = 3)::int), sum((becomes = 4)::int - (state = 4)::int),
    sum((becomes = 5)::int), sum((becomes = 6)::int), sum((becomes = 7)::int), sum((becomes = 8)::int),
    -sum(case when becomes >= 5 then bytes else 0 end)
  from moved group by line)
select num, seq from ended
union all select num, null from moved where becomes <= 4
union all select num, null from marked
