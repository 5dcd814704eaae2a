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

-- What was asked for: written once. A final job is changed (retried, removed) only under the lock of its row here.
create sequence job_num;
create table job (
  num          int8 primary key,           -- submit order
  id           text collate "C" not null unique,
  line         int4 not null,
  priority     int4 not null,
  submitted    int8 not null,
  content_type text not null,
  payload      bytea not null,
  options      text                        -- JSON of what is seldom set
);

-- Plans are made for tables of any size, once. So that none can pick an index that it would have to read from end to end,
-- what is looked up by (num, seq) is only ever the first column of one, or hidden in an expression.

-- The changing part of an unfinished job is one narrow row, in exactly one of the next three tables.

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
  cancel_reason text,
  primary key (num)
) with (fillfactor = 70);

-- Rows come and go by the thousand every second.
alter table ready   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table waiting set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table lease   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table tally   set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);

-- Unfinished jobs, wherever they are.
create view live as
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         worker, started, until, cancel_reason from lease
  union all
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         null, null, null, null from ready
  union all
  select num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, retention, fence,
         null, null, null, null from waiting;

-- The result store and the feed. seq is the position: drawn under the lane lock (see move.sql), so in commit order.
create sequence done_seq;
create table done (
  seq          int8 primary key,
  num          int8 not null,
  run          int4 not null,
  attempt      int4 not null,
  version      int8 not null,
  state        int4 not null,
  fence        int8 not null,              -- of the newest grant
  worker       text,
  started      int8,
  finished     int8 not null,
  keep_until   int8 not null,
  error        text,                       -- JSON
  content_type text,
  output       bytea
);
create index done_num on done (num);
create index done_keep_until on done (keep_until);
create index done_unsuccessful on done (num) where state <> 5;

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
