-- What keeps the database from serving well for long, in sentences that stay the same for as long as it lasts. What holds
-- back the cleaning of tables is told after so many seconds ($1). Other roles' transactions are seen with the membership
-- of pg_read_all_stats only. $2: how many more connections are needed.
select 'autovacuum or track_counts is off: tables only grow, and get slow. Turn both on' as warning
where not (current_setting('autovacuum')::bool and current_setting('track_counts')::bool)
union all
select format('a transaction is open since %s (process %s, %s): what it might still see is not cleaned, and tables grow. End it, '
              'or run it on a server of its own',
              xact_start, pid, coalesce(nullif(application_name, ''), usename))
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend'
  and (backend_xmin is not null or backend_xid is not null) and xact_start < now() - $1::float8 * interval '1 second'
union all
select format('the prepared transaction %L is open since %s: what it might still see is not cleaned, and tables grow. Commit '
              'it or roll it back', gid, prepared)
from pg_prepared_xacts
where database = current_database() and prepared < now() - $1::float8 * interval '1 second'
union all
select format('nobody reads the replication slot %L, which keeps what a standby might still see: nothing is cleaned, and '
              'tables grow. Start its reader, or drop it', slot_name)
from pg_replication_slots
where not active and xmin is not null
union all
select format('only %s connections to the server are left, and this replica needs %s: raise max_connections', free, $2::int8)
from (
  select current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
    - coalesce(current_setting('reserved_connections', true)::int8, 0) - sum(numbackends) as free
  from pg_stat_database) x
where free < $2::int8
