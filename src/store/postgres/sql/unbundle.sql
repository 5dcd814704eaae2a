-- Puts the leases of these bundles ($1) that are still open into `lease`, each by itself. Only first attempts are ever in a
-- bundle, on jobs that were due at once and have no limit of time and no retention of their own. (The rank does not count
-- while a job runs.)
with locked as materialized (
  -- As in finish.sql.
  select fence from bundle where fence = any ($1::int8[]) order by fence for update),
gone as materialized (
  delete from bundle where fence = any (array (select fence from locked)) returning *)
insert into lease (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes,
                   retention, fence, worker, replica, started, until, claim)
select j.num, j.line, 3, 1, 1, 2, j.priority, j.submitted, 0, null, null, null, j.size,
       null, g.fence, g.worker, g.replica, g.started, g.until, g.claim
from gone g, unnest(g.nums) with ordinality as u (num, place), job_of(u.num) j
where get_bit(g.open, u.place::int4 - 1) = 1
