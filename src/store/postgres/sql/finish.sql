-- Ends jobs that are in bundles: of each bundle ($1) the places of a mask ($2), if all of them are still open. What they come
-- to is a list of rows of `done`, each of one bundle and with its part of the numbers and outputs ($3, $4). Answers with those
-- rows that were written, by their place in the list from 1. Locks as in move.sql.
with asked as materialized (
  select * from unnest($1::int8[], $2::text[]) as u (fence, mask)),
locked as materialized (
  -- In the order of keys: nobody waits in a circle.
  select fence from bundle where fence = any ($1) order by fence for update),
cleared as (
  update bundle set
    open = open & ~(select mask from asked a where a.fence = bundle.fence)::varbit,
    running = running - (select bit_count(mask::varbit) from asked a where a.fence = bundle.fence)
  where fence = any (array (select fence from locked))
    and open & (select mask from asked a where a.fence = bundle.fence)::varbit
      = (select mask from asked a where a.fence = bundle.fence)::varbit
  returning fence, worker, started),
lane as materialized (
  select pg_advisory_xact_lock('feed'::regclass::oid::int4, 0)
  from (select count(*) as ends from cleared) x where ends > 0),
ended as materialized (
  -- Under the lock nobody else draws: these are one after the other.
  select setval('done_seq', nextval('done_seq') + ending - beginning) as seq, j.* from (
    select u.*, c.worker, c.started
    from unnest(
      $5::int4[], $6::int4[], $7::int8[], $8::int8[], $9::int4[], $10::int4[], $11::int8[], $12::int8[], $13::text[],
      $14::text[])
    with ordinality as u (beginning, ending, fence, block, becomes, line, bytes, keep_until, error, content_type, ord)
    join cleared c using (fence), lane
    order by ord) j),
to_done as (
  insert into done (seq, block, nums, run, attempt, version, state, line, fence, worker, started, finished, keep_until, error,
                    content_type, outputs, sizes)
  select seq, block, ($3::int8[])[beginning:ending], 1, 1, 3, becomes, line, fence, worker, started, $15, keep_until, error,
         content_type, ($4::bytea[])[beginning:ending], ($18::int4[])[beginning:ending]
  from ended),
unheld as (
  delete from uniq where num = any (array (
    select num from unnest($16::int8[], $17::int8[]) as u (num, fence) where fence in (select fence from cleared)))),
counted as (
  insert into tally (line, running, succeeded, failed, cancelled, expired, bytes)
  select line, -sum(count),
         coalesce(sum(count) filter (where becomes = 5), 0), coalesce(sum(count) filter (where becomes = 6), 0),
         coalesce(sum(count) filter (where becomes = 7), 0), coalesce(sum(count) filter (where becomes = 8), 0), -sum(bytes)
  from (select *, ending - beginning + 1 as count from ended) x group by line)
select ord, seq from ended
