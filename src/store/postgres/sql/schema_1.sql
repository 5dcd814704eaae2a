-- The schema of jobwire, version 1. Times are milliseconds since 1970, durations milliseconds. Numbers of states are
-- those of the contract: 1 SCHEDULED, 2 QUEUED, 3 RUNNING, 4 BACKING_OFF, 5 SUCCEEDED, 6 FAILED, 7 CANCELLED, 8 EXPIRED.
--
-- Everything lives in the first schema of the search path. jobwire decides in its own code what follows what; its
-- statements only make the moves, and only where a job is still as it was when that was decided (its version).

-- One row: the feed as a whole. What is never removed of it.
create table feed (
  log_id    bytea not null,                -- names the log that cursors belong to
  lease_key bytea not null,                -- signs the texts of leases
  start     int8  not null default 0,      -- outcomes up to this seq have left the feed
  cut       int8  not null default 0,      -- when the last of them was committed
  last      int8  not null default 0       -- the largest seq when rows were last removed
);
-- One row, however many servers start at once.
create unique index feed_one on feed ((true));

-- The server, and the timeline of its log of changes. A standby that becomes the primary begins a new timeline; so does a
-- server that is restored from an archive.
create view server as
  select system_identifier as system,
         ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 as timeline
  from pg_control_system();

-- One for each server and timeline that the feed was written on. Between the place where the one before ended, as far as
-- is known there, and the first position of this one, nothing is of the feed.
create table epoch (
  first    int8 primary key,               -- positions are larger
  ended    int8 not null,
  system   int8 not null,
  timeline int8 not null,
  began    timestamptz not null default now()
);

-- One for each pair of queue and kind, with its counts as of the last fold; `tally` has what came since. Counts of final
-- states only grow.
create table line (
  id          int4 generated always as identity primary key,
  queue       text collate "C" not null,
  kind        text collate "C" not null,
  scheduled   int8 not null default 0,
  queued      int8 not null default 0,
  running     int8 not null default 0,
  backing_off int8 not null default 0,
  succeeded   int8 not null default 0,
  failed      int8 not null default 0,
  cancelled   int8 not null default 0,
  expired     int8 not null default 0,
  bytes       int8 not null default 0,     -- payloads of unfinished jobs
  unique (queue, kind)
);

-- Appended by every statement that moves jobs, one row for each line; folded into `line` every second or so. A counter
-- that all of them change would be the one row that all of them wait for.
create table tally (
  line        int4 not null,
  scheduled   int8 not null default 0,
  queued      int8 not null default 0,
  running     int8 not null default 0,
  backing_off int8 not null default 0,
  succeeded   int8 not null default 0,
  failed      int8 not null default 0,
  cancelled   int8 not null default 0,
  expired     int8 not null default 0,
  bytes       int8 not null default 0
);

-- What was asked for: written once. A row is a block: jobs that one statement accepted one after the other, alike but for
-- their ids and inputs, about as many as fit into half a page. So what a row costs is shared. A final job is changed
-- (retried, removed) only under the lock of its row here.
--
-- A job that is neither unfinished nor has an outcome counts as not there: its last outcome left with a partition of
-- `done`, and it leaves with its own. See `part`. Jobs that were removed by themselves have left null in their places.
create sequence job_num minvalue 0 start 32 increment 32;  -- of blocks: so many jobs fit into one
create table job (
  first        int8 primary key,           -- the number of the first of them; the others follow. It is their submit order
  ids          text[] collate "C" not null,  -- of several jobs with one id the newest counts
  line         int4 not null,
  priority     int4 not null,
  submitted    int8 not null,
  content_type text not null,
  payloads     bytea[] not null,
  sizes        int4[] not null,            -- of payloads: these need not be read for it
  options      text,                       -- JSON of what is seldom set
  low          text collate "C",           -- if servers have drawn the ids: the first and the last of them
  high         text collate "C"
) partition by range (first);
create index job_drawn on job (low, high) where low is not null;

-- The job of a number, and its block.
create function job_of(of_num int8)
returns table (block int8, num int8, id text, line int4, priority int4, submitted int8, content_type text, payload bytea,
               size int4, options text) language sql stable as $$
  select first, of_num, ids[of_num - first + 1], line, priority, submitted, content_type, payloads[of_num - first + 1],
         sizes[of_num - first + 1], options
  from (select * from job where first <= of_num and first > of_num - 32 order by first desc limit 1) b
  where ids[of_num - first + 1] is not null
$$;

-- Each job by itself, for whoever looks around.
create view accepted as
  select first + place - 1 as num, id, line, priority, submitted, content_type, payload, options
  from job, unnest(ids, payloads) with ordinality as u (id, payload, place) where id is not null;

-- Ids that callers have named, each of one job at a time. Those that servers draw (UUIDs of version 7) meet no other.
create table own (
  id  text collate "C" primary key,
  num int8 not null
);
create index own_num on own (num);

-- Plans are made for tables of any size, once. So that none can pick an index that it would have to read from end to end,
-- what is looked up by (num, seq) is only ever the first column of one, or hidden in an expression.

-- The changing part of an unfinished job is one narrow row, in exactly one of the next three tables; or it has a place in a
-- `bundle`.

-- QUEUED: the line of due jobs.
create table ready (
  num       int8 primary key,
  line      int4 not null,
  state     int4 not null,
  run       int4 not null,
  attempt   int4 not null,
  version   int8 not null,
  priority  int4 not null,
  due       int8 not null,
  rank      int8 not null,                 -- due less a minute for each point of priority
  wake      int8,                          -- when time changes something, the end of a lease aside
  start_by  int8,
  end_by    int8,
  bytes     int8 not null,
  retention int8,                          -- null: the queue's
  fence     int8 not null                  -- the newest grant that may still report; 0: none
);
create index ready_line on ready (line, rank, (num + 0));
create index ready_wake on ready (wake) where wake is not null;

-- SCHEDULED and BACKING_OFF.
create table waiting (like ready including defaults, primary key (num));
create index waiting_wake on waiting (wake);

-- RUNNING. `until` is in no index: a renewal changes nothing but the row.
create sequence fence;
create table lease (
  like ready including defaults,
  worker        text not null,
  replica       int8 not null,             -- that granted it
  started       int8 not null,
  until         int8 not null,
  claim         int8,                      -- drawn for the statement that granted it; null: by another store
  cancel_reason text,
  primary key (num)
) with (fillfactor = 70);

-- RUNNING, too: leases that one statement gave on jobs that were like all others, in one row for as long as they only end.
-- Whoever wants anything else of one of them gives all of them rows in `lease` first (unbundle.sql, which also tells what
-- such a lease is like).
create table bundle (
  fence   int8 primary key,                -- of all its leases
  first   int8 not null,                   -- the numbers of its jobs lie between: no more than 65536 of them
  last    int8 not null,
  nums    int8[] not null,
  open    bit varying not null,            -- at the places of the numbers: 1 while the job runs
  running int4 not null,                   -- how many do
  worker  text not null,
  replica int8 not null,
  started int8 not null,
  until   int8 not null,
  claim   int8 not null
) with (fillfactor = 50, toast_tuple_target = 256);
-- What ends changes neither an index nor the numbers, which are kept elsewhere unless they are few.
alter table bundle alter nums set storage external;
create index bundle_first on bundle (first);

-- The leases in bundles that are still open, each by itself.
create view seat as
  select num, fence, worker, replica, until, claim
  from bundle, unnest(nums) with ordinality as u (num, place)
  where running > 0 and get_bit(open, place::int4 - 1) = 1;

-- The same of one job.
create function seat_of(job int8)
returns table (fence int8, worker text, started int8, until int8, place int4, places int4) language sql stable as $$
  select fence, worker, started, until, array_position(nums, job) - 1, length(open) from bundle
  where first <= job and first > job - 65536 and last >= job and get_bit(open, array_position(nums, job) - 1) = 1
$$;

-- Rows come and go by the thousand every second.
alter table bundle  set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table ready   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table waiting set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table lease   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table tally   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);

-- Unfinished jobs with a row of their own.
create view live as
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         worker, started, until, cancel_reason from lease
  union all
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         null, null, null, null from ready
  union all
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         null, null, null, null from waiting;

create view unfinished as select num from live union all select num from seat;
create view running as select num from lease union all select num from seat;

-- The result store and the feed. seq is the position: drawn under the lane lock (see move.sql), so in commit order. A row
-- has outcomes that one statement made of jobs of one block, if those succeeded alike but for their outputs. An outcome that
-- was removed by itself has left null in its place.
create sequence done_seq;
create table done (
  seq          int8 primary key,           -- of the last of them; the others come right before
  block        int8 not null,              -- job.first
  nums         int8[] not null,
  run          int4 not null,
  attempt      int4 not null,
  version      int8 not null,
  state        int4 not null,
  line         int4 not null,
  fence        int8 not null,              -- of the newest grant
  worker       text,
  started      int8,
  finished     int8 not null,
  keep_until   int8 not null,
  error        text,                       -- JSON
  content_type text,
  outputs      bytea[] not null,
  sizes        int4[] not null             -- of outputs
) partition by range (seq);
create index done_block on done (block);
create index done_keep_until on done (keep_until);
create index done_rerun on done ((keep_until + 0)) where run > 1;
create index done_unsuccessful on done ((nums[1])) where state <> 5;

-- Each outcome by itself, for whoever looks around.
create view outcome as
  select seq - cardinality(nums) + place as position, num, run, attempt, version, state, line, fence, worker, started,
         finished, keep_until, error, content_type, output
  from done, unnest(nums, outputs) with ordinality as u (num, output, place) where num is not null;

-- Attempts that failed, the newest of each job.
create table failure (
  num      int8 not null,
  run      int4 not null,
  attempt  int4 not null,
  worker   text,
  started  int8,
  finished int8 not null,
  error    text not null,                  -- JSON
  primary key (num, run, attempt)
);

-- The newest progress of an unfinished job.
create table progress (
  num          int8 primary key,
  at           int8   not null,
  fraction     float8 not null,
  note         text   not null,
  content_type text,
  details      bytea
) with (fillfactor = 50);

-- Keys of which one unfinished job at a time may hold each.
create table uniq (
  queue text collate "C" not null,
  key   text collate "C" not null,
  num   int8 not null,
  primary key (queue, key)
);
create index uniq_num on uniq (num);

-- Request ids, remembered beyond their jobs.
create table request (
  caller     text collate "C" not null,
  request_id text collate "C" not null,
  num        int8  not null,
  job_id     text  not null,
  asked      bytea not null,               -- fingerprint of the spec
  own_id     text,                         -- the id that the request named, if it did
  until      int8  not null,
  primary key (caller, request_id)
);
create index request_until on request (until);

-- Since when the server knows of locks. It has forgotten all of them when it starts, and when it recovers from the crash of
-- one of its own processes, which its statistics do not outlive either.
create view locks as
  select greatest(pg_postmaster_start_time(), (select stats_reset from pg_stat_bgwriter)) as since;

-- Processes that serve. Each holds an advisory lock on (this table, its id) for as long as it lives.
create table replica (
  id      int8 generated always as identity primary key,
  server  timestamptz not null,            -- since when the server had known of locks when this one took its own
  started timestamptz not null default now()
);

-- The partitions of `job` (by first) and `done` (by seq). Each holds the numbers from `low` up to before `high`: of `job`
-- multiples of 32, so that all jobs of a block are in one. Several are always there beyond the numbers in use. There is none
-- for numbers that were left out, and none for all others.
create view part as
  select parent.relname::text as of, child.oid::regclass as part, bounds[1]::int8 as low, bounds[2]::int8 as high
  from pg_inherits i join pg_class parent on parent.oid = i.inhparent join pg_class child on child.oid = i.inhrelid,
    regexp_match(pg_get_expr(child.relpartbound, child.oid), 'FROM \(''?(\d+)''?\) TO \(''?(\d+)''?\)') bounds
  -- One that is being dropped may have lost its bounds already.
  where i.inhparent in ('job'::regclass, 'done'::regclass) and bounds is not null;

-- What follows acts for the owner of the tables: the role that serves need not be able to make and drop any. Whoever makes
-- or drops a partition holds the advisory lock of `part`.

-- Makes a partition, unless one is in its place.
create function add_part(parent text, first int8, beyond int8) returns void language plpgsql security definer
set lock_timeout = '1s' as $$
declare
  name text := format('%s_%s', parent, first);
begin
  perform pg_advisory_xact_lock('part'::regclass::oid::int4, 0);
  if parent in ('job', 'done')
    and not exists (select from part where of = parent and low < beyond and high > first) then
    -- Made apart and attached, it waits for nobody who reads or writes, and they do not wait for it.
    -- Rows of half a page stay whole.
    execute format('create table %I (like %I including all) with (toast_tuple_target = 8160)', name, parent);
    execute format('alter table %I attach partition %I for values from (%s) to (%s)', parent, name, first, beyond);
  end if;
end $$;

-- What the partitions of `done` hold: the outcome to be removed first, when the last one is, and whether there are any that
-- older outcomes of their jobs have to go with.
create function survey() returns table (
  low int8, high int8, first_until int8, first_finished int8, last_until int8, has_reruns bool)
language plpgsql security definer as $$
declare
  p part;
begin
  -- None is dropped meanwhile.
  lock table done in access share mode;
  for p in select * from part where of = 'done' order by part.low loop
    return query execute format($q$
      select $1, $2, (select keep_until from %1$s order by keep_until limit 1),
        (select finished from %1$s order by keep_until limit 1),
        (select keep_until from %1$s order by keep_until desc limit 1), exists (select from %1$s where run > 1)
      $q$, p.part) using p.low, p.high;
  end loop;
end $$;

-- Outcomes whose retention is over, at most so many, but for those in these partitions.
create function outdated(at int8, most int8, spared int8[]) returns table (num int8, seq int8)
language plpgsql security definer as $$
declare
  p part;
  told int8;
begin
  lock table done in access share mode;
  for p in select * from part where of = 'done' and low <> all (spared) order by low loop
    return query execute format(
      'select num, seq
       from (select nums, seq from %s where keep_until <= $1 order by keep_until limit $2) d, unnest(nums) as u (num)
       where num is not null limit $2', p.part) using at, most;
    get diagnostics told = row_count;
    most := most - told;
    exit when most <= 0;
  end loop;
end $$;

-- Keeps out whoever cleans a partition, before others are made to wait for it. False if it is being cleaned.
create function is_free(part regclass) returns bool language plpgsql as $$
begin
  execute format('lock table %s in share update exclusive mode nowait', part);
  return true;
exception when lock_not_available then
  return false;
end $$;

-- Drops a partition of `done`, if the retention of all that it holds is over and no more will come. Nobody waits for it for
-- longer than it waits itself for those who are at work: then it gives up (lock_not_available).
create function drop_done(first int8, at int8) returns bool language plpgsql security definer
set lock_timeout = '100ms' as $$
declare
  p part;
  is_kept bool;
begin
  if not pg_try_advisory_xact_lock('part'::regclass::oid::int4, 0) then return false; end if;
  select * into p from part
  where of = 'done' and low = first
    and high <= (select greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) from feed);
  if not found then return false; end if;
  if not is_free(p.part) then return false; end if;
  lock table done in access exclusive mode;
  execute format('select exists (select from %1$s where keep_until > $1) or exists (select from %1$s where run > 1)', p.part)
    into is_kept using at;
  if is_kept then return false; end if;
  execute format('drop table %s', p.part);
  return true;
end $$;

-- Blocks between two numbers that have jobs which are there.
create function rest_of(low int8, high int8) returns table (block int8) language sql stable as $$
  select block from unfinished u, job_of(u.num) j where u.num >= low and u.num < high
  union select block from done where block >= low and block < high
$$;

-- Drops a partition of `job`, if no more will come and nothing is left of its jobs; so many of
-- them and so many outcomes may be ($2) that another one takes its place for the rest, if that is by far smaller. Waits as
-- the one above.
create function drop_job(first int8, most int8) returns bool language plpgsql security definer
set lock_timeout = '100ms' as $$
declare
  p part;
  rest int8[];
  many int8;
  name text := format('job_%s', first);
  fresh text := format('job_%s_rest', first);
begin
  if not pg_try_advisory_xact_lock('part'::regclass::oid::int4, 0) then return false; end if;
  select * into p from part where of = 'job' and low = first and high <= (select last_value from job_num);
  if not found then return false; end if;
  if (select count(*) from (select from unfinished where num >= p.low and num < p.high limit most + 1) x) > most
    or (select count(*) from (select from done where block >= p.low and block < p.high limit most + 1) x) > most then
    return false;
  end if;
  rest := array (select block from rest_of(p.low, p.high));
  if not is_free(p.part) then return false; end if;
  if cardinality(rest) > 0 then
    execute format('select count(*) from (select from %s limit $1) x', p.part)
      into many using 1000 + 16 * cardinality(rest);
    if many < 1000 + 16 * cardinality(rest) then return false; end if;
    execute format('create table %I (like job including all) with (toast_tuple_target = 8160)', fresh);
    execute format('insert into %I select * from %s where first = any ($1)', fresh, p.part) using rest;
  end if;
  lock table job in access exclusive mode;
  -- Whoever had drawn one of its numbers has committed by now.
  if exists (select block from rest_of(p.low, p.high) except select unnest(rest)) then
    raise lock_not_available using message = 'the partition was in use';
  end if;
  execute format('drop table %s', p.part);
  if cardinality(rest) > 0 then
    execute format('alter table %I rename to %I', fresh, name);
    execute format('alter table job attach partition %I for values from (%s) to (%s)', name, p.low, p.high);
  end if;
  return true;
end $$;

-- They find what is meant by their names, and nothing else; and not everybody may call them.
do $$ declare
  f regprocedure;
begin
  foreach f in array array[
    'add_part(text, int8, int8)', 'survey()', 'outdated(int8, int8, int8[])', 'drop_done(int8, int8)',
    'rest_of(int8, int8)', 'drop_job(int8, int8)', 'is_free(regclass)']::regprocedure[] loop
    execute format('alter function %s set search_path = %I, pg_temp', f, current_schema);
    execute format('revoke execute on function %s from public', f);
  end loop;
end $$;
