-- Begins new runs of final jobs that are as they were: under their locks, in a statement of its own, which sees what was
-- committed before they were had. Answers with those that run again.
with asked as materialized (
  select * from unnest(
    $1::int8[], $2::int8[], $3::int4[], $4::int4[], $5::int4[], $6::int4[], $7::int8[], $8::int8[], $9::int8[],
    $10::int8[], $11::int8[], $12::int8[], $13::int8[], $14::int8[], $15::text[], $16::text[])
  with ordinality as u (
    num, was_version, line, state, run, priority, version, due, rank,
    wake, start_by, end_by, bytes, retention, unique_queue, unique_key, ord)),
free as materialized (
  select a.* from asked a
  where (select num from live where num = a.num limit 1) is null
    and (select max(version) from done where block = (select block from job_of(a.num)) and a.num = any (nums)) = a.was_version),
held as (
  insert into uniq (queue, key, num)
  select unique_queue, unique_key, num from free where unique_key is not null
  order by unique_queue, unique_key, ord
  on conflict do nothing returning num),
fresh as materialized (
  select * from free where unique_key is null or num = any (array (select num from held))),
done_with as (delete from progress where num = any (array (select num from fresh))),
to_ready as (
  insert into ready (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                     retention, fence)
  select num, line, state, run, 0, version, priority, due, rank, wake, start_by, end_by, bytes, retention, 0
  from fresh where state = 2),
to_waiting as (
  insert into waiting (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                       retention, fence)
  select num, line, state, run, 0, version, priority, due, rank, wake, start_by, end_by, bytes, retention, 0
  from fresh where state = 1),
counted as (
  insert into tally (line, scheduled, queued, bytes)
  select line, count(*) filter (where state = 1), count(*) filter (where state = 2), sum(bytes) from fresh group by line)
select num from fresh
