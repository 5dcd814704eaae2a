-- Takes the lock that says that a replica lives, if its connection has lost it.
with held as materialized (
  select exists (
    select from pg_locks where locktype = 'advisory' and objsubid = 2 and pid = pg_backend_pid()
      and classid = 'replica'::regclass::oid and objid = $1::int8::oid) as is_held),
taken as materialized (
  select is_held or pg_try_advisory_lock('replica'::regclass::oid::int4, $1::int8::int4) as is_taken from held)
update replica set server = pg_postmaster_start_time()
where id = $1 and server <> pg_postmaster_start_time() and (select is_taken from taken)
