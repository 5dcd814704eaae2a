-- Ends jobs that are in bundles: of each bundle ($1) the places of a mask ($2), if all of them are still open. Answers with the
-- jobs and the positions of their outcomes. Locks as in move.sql.
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
  select nextval('done_seq') as seq, j.* from (
    select u.*, c.worker, c.started
    from unnest(
      $3::int8[], $4::int8[], $5::int4[], $6::int4[], $7::int8[], $8::int8[], $9::text[], $10::text[], $11::bytea[])
    with ordinality as u (num, fence, becomes, line, bytes, keep_until, error, content_type, output, ord)
    join cleared c using (fence), lane
    order by ord) j),
to_done as (
  insert into done (seq, num, run, attempt, version, state, line, fence, worker, started, finished, keep_until, error,
                    content_type, output)
  select seq, num, 1, 1, 3, becomes, line, fence, worker, started, $12, keep_until, error, content_type, output
  from ended),
unheld as (delete from uniq where num = any (array (select num from ended))),
counted as (
  insert into tally (line, running, succeeded, failed, cancelled, expired, bytes)
  select line, -count(*), count(*) filter (where becomes = 5), count(*) filter (where becomes = 6),
         count(*) filter (where becomes = 7), count(*) filter (where becomes = 8), -sum(bytes)
  from ended group by line)
select num, seq from ended
