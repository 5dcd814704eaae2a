-- Makes lines that are not there yet. One replica at a time, so that ids come in commit order: whoever knows the largest
-- knows all.
with turn as materialized (select pg_advisory_xact_lock('line'::regclass::oid::int4, 0))
insert into line (queue, kind)
select u.queue, u.kind from turn, unnest($1::text[], $2::text[]) as u (queue, kind)
on conflict (queue, kind) do nothing
