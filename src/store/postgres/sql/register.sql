-- A new replica, with the lock that says that it lives. Forgets those that are gone and hold no leases.
with gone as (
  delete from replica r where not exists (select from lease where replica = r.id)
    and not exists (select from bundle where replica = r.id) and not exists (
    select from pg_locks k where k.locktype = 'advisory' and k.objsubid = 2
      and k.database = (select oid from pg_database where datname = current_database())
      and k.classid = 'replica'::regclass::oid and k.objid = r.id::oid)),
here as (insert into replica (server) select since from locks returning id)
select id, pg_advisory_lock('replica'::regclass::oid::int4, id::int4) from here
