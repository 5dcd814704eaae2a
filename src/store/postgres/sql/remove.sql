-- Removes outcomes of jobs up to a position, and each job that has none left and is not unfinished, with everything but
-- its request ids. With a version ($3) only if that is still the newest. Under the locks of the jobs. The feed remembers
-- how far it had come. What others are left in the row of, leaves its place there empty. Answers with the jobs that were
-- removed.
with asked as materialized (
  select u.*, j.block from unnest($1::int8[], $2::int8[], $3::int8[]) as u (num, upto, version), job_of(u.num) j),
meant as materialized (
  select a.num, a.block, a.upto,
    (select num from live where num = a.num limit 1) is null
    and coalesce((
      select max(seq - cardinality(nums)) from done where block = a.block and a.num = any (nums)) < a.upto, true) as is_last
  from asked a
  where a.version is null or (
    (select num from live where num = a.num limit 1) is null
    and (select max(version) from done where block = a.block and a.num = any (nums)) = a.version)),
noted as (
  update feed set last = greatest(last, (select seq from done order by seq desc limit 1))
  where exists (select from meant)),
found as materialized (
  select d.seq, d.nums, array_agg(m.num) as lost from meant m, lateral (
    select seq, nums from done where block = m.block and m.num = any (nums) and seq - cardinality(nums) < m.upto offset 0) d
  group by d.seq, d.nums),
rows as materialized (
  select seq, lost, array_remove(nums, null) <@ lost as is_all from found),
outcomes as (
  -- Between the first and the last: only the partitions that hold them are looked at. So below.
  delete from done where seq = any (array (select seq from rows where is_all))
    and seq >= (select min(seq) from rows) and seq <= (select max(seq) from rows)),
thinned as (
  update done set (nums, outputs) = (
    select array_agg(case when num <> all (lost) then num end order by place),
           array_agg(case when num <> all (lost) then output end order by place)
    from rows r, unnest(nums, outputs) with ordinality as u (num, output, place) where r.seq = done.seq)
  where seq = any (array (select seq from rows where not is_all))
    and seq >= (select min(seq) from rows) and seq <= (select max(seq) from rows)),
over as materialized (select num, block from meant where is_last),
failures as (delete from failure where num = any (array (select num from over))),
told as (delete from progress where num = any (array (select num from over))),
owned as (delete from own where num = any (array (select num from over))),
blocks as materialized (
  select block, array_agg(num - block + 1) as places from over group by block),
left_over as materialized (
  select block, places, exists (
    select from unnest(ids) with ordinality as u (id, place) where id is not null and place <> all (places)) as is_some
  from blocks, lateral (select ids from job where first = block limit 1) j),
jobs as (
  delete from job where first = any (array (select block from left_over where not is_some))
    and first >= (select min(block) from left_over) and first <= (select max(block) from left_over)),
kept as (
  update job set (ids, payloads) = (
    select array_agg(case when place <> all (places) then id end order by place),
           array_agg(case when place <> all (places) then payload end order by place)
    from left_over, unnest(ids, payloads) with ordinality as u (id, payload, place) where block = first)
  where first = any (array (select block from left_over where is_some))
    and first >= (select min(block) from left_over) and first <= (select max(block) from left_over))
select num from over
