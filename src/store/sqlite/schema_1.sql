-- Times are milliseconds since 1970. Numbers of states are those of the contract.

-- log_id: NULL in a backup, so that a restored store begins a log of its own.
-- lease_key: signs the texts of leases; drawn at the first start.
-- syncs: counts commits made only to be synced.
-- last_num, last_seq: the largest numbers when rows were last removed; those of removed rows must not come again.
-- feed_start: outcomes up to this seq have left the feed; feed_cut: when the last of them was committed.
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('log_id', NULL), ('feed_start', 0), ('feed_cut', 0), ('syncs', 0), ('last_num', 0), ('last_seq', 0);

-- One for each pair of queue and kind, with its counts. Counts of final states only grow.
CREATE TABLE line (
  id          INTEGER PRIMARY KEY,
  queue       TEXT    NOT NULL,
  kind        TEXT    NOT NULL,
  scheduled   INTEGER NOT NULL DEFAULT 0,
  queued      INTEGER NOT NULL DEFAULT 0,
  running     INTEGER NOT NULL DEFAULT 0,
  backing_off INTEGER NOT NULL DEFAULT 0,
  succeeded   INTEGER NOT NULL DEFAULT 0,
  failed      INTEGER NOT NULL DEFAULT 0,
  cancelled   INTEGER NOT NULL DEFAULT 0,
  expired     INTEGER NOT NULL DEFAULT 0,
  bytes       INTEGER NOT NULL DEFAULT 0,   -- payloads of unfinished jobs
  UNIQUE (queue, kind)
) STRICT;

-- What was asked for: written once.
CREATE TABLE job (
  num          INTEGER PRIMARY KEY,
  id           ANY     NOT NULL UNIQUE,     -- a UUID as 16 bytes, any other id as text
  line         INTEGER NOT NULL,
  priority     INTEGER NOT NULL,
  submitted    INTEGER NOT NULL,
  content_type TEXT    NOT NULL,
  payload      BLOB    NOT NULL,
  crc          INTEGER NOT NULL,            -- CRC-32 of payload
  options      TEXT                         -- JSON of what is seldom set
) STRICT;

-- The part of an unfinished job that changes. Its state is in no other place, but for jobs in bundles.
CREATE TABLE live (
  num           INTEGER PRIMARY KEY,
  line          INTEGER NOT NULL,
  state         INTEGER NOT NULL,
  run           INTEGER NOT NULL,
  attempt       INTEGER NOT NULL,
  version       INTEGER NOT NULL,
  priority      INTEGER NOT NULL,
  due           INTEGER NOT NULL,
  rank          INTEGER NOT NULL,
  wake          INTEGER,                    -- when time changes something, the lease aside
  start_by      INTEGER,
  end_by        INTEGER,
  bytes         INTEGER NOT NULL,
  retention     INTEGER,                    -- NULL: the queue's
  fence         INTEGER NOT NULL,
  worker        TEXT,
  started       INTEGER,
  until         INTEGER,
  cancel_reason TEXT,
  unique_queue  TEXT,
  unique_key    TEXT
) STRICT;
CREATE INDEX live_ready ON live (line, rank, num) WHERE state = 2;
CREATE INDEX live_running ON live (until) WHERE state = 3;
CREATE INDEX live_wake ON live (wake) WHERE wake IS NOT NULL;
CREATE UNIQUE INDEX live_unique ON live (unique_queue, unique_key) WHERE unique_key IS NOT NULL;

-- First attempts that the pool was given in the transaction that accepted their jobs: those of these numbers that are
-- neither in `live` nor in `done`.
CREATE TABLE bundle (
  first   INTEGER PRIMARY KEY,
  last    INTEGER NOT NULL,
  fence   INTEGER NOT NULL,                 -- of all
  worker  TEXT    NOT NULL,
  started INTEGER NOT NULL,
  until   INTEGER NOT NULL
) STRICT;

-- The places of a row of `done`.
CREATE TABLE place (n INTEGER PRIMARY KEY) STRICT;
INSERT INTO place SELECT value FROM json_each('[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31]');

-- The result store and the feed: seq is the position, in commit order. Successes that came about together share a row if
-- nothing but their jobs and their outputs tells them apart, and the numbers of their jobs are among the same 32: their
-- positions and their outputs follow one another as their numbers do.
CREATE TABLE done (
  seq          INTEGER PRIMARY KEY,         -- of the last one
  base         INTEGER NOT NULL,            -- the number of the job, or one below it: a multiple of 32
  held         INTEGER NOT NULL,            -- a bit for each job: 1 << (number - base)
  run          INTEGER NOT NULL,
  attempt      INTEGER NOT NULL,
  version      INTEGER NOT NULL,
  state        INTEGER NOT NULL,
  fence        INTEGER NOT NULL,            -- of the newest grant
  worker       TEXT,
  started      INTEGER,
  finished     INTEGER NOT NULL,
  keep_until   INTEGER NOT NULL,
  error        TEXT,                        -- JSON
  content_type TEXT,
  ends         TEXT,                        -- JSON: where each output ends, if there are several
  output       BLOB,
  crc          INTEGER NOT NULL             -- CRC-32 of what is told of them: see done::Ended
) STRICT;
CREATE INDEX done_base ON done (base, seq, held);
CREATE INDEX done_keep_until ON done (keep_until);
CREATE INDEX done_unsuccessful ON done (base, held) WHERE state <> 5;

-- Attempts that failed.
CREATE TABLE failure (
  num      INTEGER NOT NULL,
  run      INTEGER NOT NULL,
  attempt  INTEGER NOT NULL,
  worker   TEXT,
  started  INTEGER,
  finished INTEGER NOT NULL,
  error    TEXT    NOT NULL,                -- JSON
  PRIMARY KEY (num, run, attempt)
) STRICT, WITHOUT ROWID;

-- The newest progress of an unfinished job.
CREATE TABLE progress (
  num          INTEGER PRIMARY KEY,
  at           INTEGER NOT NULL,
  fraction     REAL    NOT NULL,
  note         TEXT    NOT NULL,
  content_type TEXT,
  details      BLOB
) STRICT;

-- Request ids, remembered beyond their jobs.
CREATE TABLE request (
  caller     TEXT    NOT NULL,
  request_id TEXT    NOT NULL,
  num        INTEGER NOT NULL,
  job_id     TEXT    NOT NULL,
  asked      BLOB    NOT NULL,              -- fingerprint of the spec
  own_id     TEXT,                          -- the id that the request named, if it did
  until      INTEGER NOT NULL,
  PRIMARY KEY (caller, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_until ON request (until);

-- What the jobs of bundles would have in `live`. There are few bundles: they are looked through first.
CREATE VIEW seat AS
  SELECT first AS bundle, num, line, 3 AS state, 1 AS run, 1 AS attempt, 2 AS version, priority, submitted AS due,
    submitted - priority * 60000 AS rank, NULL AS wake, NULL AS start_by, NULL AS end_by, length(payload) AS bytes,
    NULL AS retention, fence, worker, started, until, NULL AS cancel_reason
  FROM bundle CROSS JOIN job ON num BETWEEN first AND last
  WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.num = job.num)
    AND NOT EXISTS (SELECT 1 FROM done WHERE base = job.num & -32 AND held >> (job.num & 31) & 1);

CREATE VIEW unfinished AS SELECT num, line, state, bytes FROM live UNION ALL SELECT num, line, state, bytes FROM seat;

-- The outcomes of `done`, one by one.
CREATE VIEW outcome AS
  SELECT seq - (SELECT count(*) FROM place AS p WHERE p.n > place.n AND held >> p.n & 1) AS seq, base + n AS num,
    run, attempt, version, state, fence, worker, started, finished, keep_until, error, content_type,
    iif(ends IS NULL, output, (
      SELECT substr(output, iif(rank, ends ->> (rank - 1), 0) + 1, (ends ->> rank) - iif(rank, ends ->> (rank - 1), 0))
      FROM (SELECT count(*) AS rank FROM place AS p WHERE p.n < place.n AND held >> p.n & 1))) AS output
  FROM done CROSS JOIN place ON held >> n & 1;
