-- Leases that were granted by a process that is gone: nobody holds its lock. `proven` unless the database server has
-- begun anew since, and forgotten all locks.
select l.num, l.fence, l.worker, r.server is not distinct from (select since from locks) as proven
from (select num, fence, worker, replica from lease union all select num, fence, worker, replica from seat) l
left join replica r on r.id = l.replica
where not exists (
  select from pg_locks k where k.locktype = 'advisory' and k.objsubid = 2
    and k.database = (select oid from pg_database where datname = current_database())
    and k.classid = 'replica'::regclass::oid and k.objid = l.replica::oid)
order by l.num
