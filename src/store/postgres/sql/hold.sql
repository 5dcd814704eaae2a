-- Takes the lock that says that a replica lives, if its connection has lost it; another one may have taken it for gone
-- meanwhile.
with held as materialized (
  select exists (
    select from pg_locks where locktype = 'advisory' and objsubid = 2 and pid = pg_backend_pid()
      and classid = 'replica'::regclass::oid and objid = $1::int8::oid) as is_held),
taken as materialized (
  select is_held or pg_try_advisory_lock('replica'::regclass::oid::int4, $1::int8::int4) as is_taken from held)
insert into replica (id, server) overriding system value
select $1, since from locks where (select is_taken from taken)
on conflict (id) do update set server = excluded.server where replica.server <> excluded.server
