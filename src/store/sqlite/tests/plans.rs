//! Every statement of a command, and of those who follow the feed, finds its rows by an index: none reads a table
//! from end to end, none sorts. With tables that are empty, and with full ones that SQLite has looked at.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use rusqlite::{
    Connection, StatementStatus,
    trace::{TraceEvent, TraceEventCodes},
};

use crate::{
    config::Config,
    job::{Filter, JobError, Payload, Progress, Report, Timestamp, View, WorkerId},
    store::{
        Cancel, Claim, Delete, LeaseId, OnlyIf, Position, Queues, Renewal, Retry, Settlement, Signals,
        sqlite::{
            Shared, change, claim, feed, lines::Lines, open, read, settle, submit, tick, tx::Tx,
            writer::State,
        },
        suite::{KIND, New, drawn, id, job},
    },
};

/// The writer of a store, on the thread of the test, and what it says to SQLite.
struct Writer {
    state: State,
    said: mpsc::Receiver<String>,
    now: Timestamp,
}

impl Writer {
    fn open(dir: &Path) -> Self {
        let mut connection = open::writer(dir, 1 << 20).unwrap();
        let (say, said) = mpsc::channel();
        let listen = move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(statement, _) = event {
                say.send(statement.sql().into_owned()).unwrap();
            }
        };
        connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(listen)).unwrap();
        let config = Arc::new(Config::default());
        let lines = Lines::load(&connection, &config).unwrap();
        let shared = Shared { free_bytes: u64::MAX.into(), now: 0.into(), counts: lines.counts().into() };
        let signals = Arc::new(Signals::new(Position(0)));
        let state = State::new(connection, config, lines, signals, shared.into()).unwrap();
        Self { state, said, now: Timestamp(1_700_000_000_000) }
    }

    fn run<T>(&mut self, run: impl FnOnce(&mut Tx<'_>, Timestamp) -> rusqlite::Result<T>) -> T {
        let now = self.now;
        self.state.now(|tx| run(tx, now)).unwrap()
    }

    fn submit(&mut self, group: Vec<New>) {
        let group = group.into_iter().map(Into::into).collect();
        self.run(|tx, now| submit::submit(tx, now, vec![group]))[0].as_ref().unwrap();
    }

    fn claim(&mut self, limit: usize) -> Vec<LeaseId> {
        self.run(|tx, now| lease(tx, now, "w", limit))
    }

    /// Leases jobs as they are accepted.
    fn bundle(&mut self, group: Vec<New>) -> Vec<LeaseId> {
        let group: Vec<_> = group.into_iter().map(Into::into).collect();
        self.run(|tx, now| {
            let count = group.len();
            submit::submit(tx, now, vec![group])?;
            lease(tx, now, WorkerId::of_pool("p").unwrap().as_str(), count)
        })
    }

    fn settle(&mut self, leases: &[LeaseId], report: Report) {
        let progress = Some(self.progress());
        let settlements = leases.iter().map(|&lease| Settlement {
            lease,
            report: report.clone(),
            only_if: OnlyIf::Held,
            jitter: 1.0,
            progress: progress.clone(),
            job: None,
        });
        let settlements = settlements.collect();
        let settled = self.run(|tx, now| settle::settle(tx, now, settlements));
        assert!(settled.iter().all(Result::is_ok));
    }

    fn progress(&self) -> Progress {
        Progress { fraction: 0.5, note: String::new(), details: None, update_time: self.now }
    }

    fn tick_after(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        while self.run(|tx, now| tick::tick(tx, now, now)).more {}
    }

    /// What can happen to jobs: to three of them, again and again.
    fn live(&mut self, round: usize) {
        let name = |letter: &str| format!("{letter}-{round}");
        let queue = ["one", "two"][round % 2];
        let unique = |new: New| new.queue(queue).unique(&name("key"));
        let first = unique(job(&name("a"))).request(&name("request"));
        let (second, third) = (job(&name("b")).queue(queue).kind("else"), job(&name("c")).queue(queue));
        self.submit(vec![first.clone(), second, third.delay(Duration::from_secs(5))]);
        for repeat in [first, unique(job(&name("a"))), unique(drawn(&name("d")))] {
            self.submit(vec![repeat]);
        }

        let leases = self.claim(2);
        let (until, progress) = (Some(self.now.after(Duration::from_secs(60))), Some(self.progress()));
        let renewals = leases.iter().map(|&lease| Renewal { lease, until, progress: progress.clone() });
        let renewals = renewals.collect();
        self.run(|tx, _| settle::renew(tx, renewals));
        self.settle(&leases[..1], Report::Released { delay: Duration::ZERO });
        self.settle(&leases[1..], Report::Failed(JobError::retryable("busy", "")));
        self.tick_after(10);
        let leases = self.claim(2);
        self.settle(&leases, Report::Succeeded(Payload::none()));

        assert_eq!(self.claim(1).len(), 1);
        self.tick_after(30);
        let job_id = id(&name("c"));
        let retry = Retry { job_id: job_id.clone(), delay: Duration::ZERO, etag: None };
        self.run(|tx, now| change::retry(tx, now, &retry)).unwrap();
        let cancel = Cancel { job_id, reason: String::new(), etag: None };
        self.run(|tx, now| change::cancel(tx, now, &cancel)).unwrap();
        self.run(|tx, now| change::retry(tx, now, &retry)).unwrap();
        let last = self.claim(1);
        self.settle(&last, Report::Succeeded(Payload::none()));
        let bundled = self.bundle(["f", "g", "h"].map(|letter| job(&name(letter)).queue(queue)).into());
        self.settle(&bundled[..1], Report::Succeeded(Payload::none()));
        self.settle(&bundled[1..2], Report::Failed(JobError::permanent("broken", "")));
        self.tick_after(2);
        self.settle(&bundled[2..], Report::Succeeded(Payload::none()));
        let delete = Delete { job_id: id(&name("a")), etag: None, allow_missing: false };
        self.run(|tx, _| change::delete(tx, &delete)).unwrap();
    }

    /// What those do who wait for results.
    fn follow(&mut self, name: &str) {
        let job_ids = Filter { job_ids: [id(name)].into(), ..Filter::default() };
        let head = Position(i64::MAX);
        self.run(|tx, now| {
            let num = read::num(tx.connection, &id(name))?.unwrap();
            read::job(tx.connection, num, View::Full)?;
            feed::outcomes(tx.connection, now, Position(0), 10, &Queues::All)?;
            feed::existing(tx.connection, now, Position(0), head, &Filter::default(), 10)?;
            feed::existing(tx.connection, now, Position(0), head, &job_ids, 10)?;
            feed::position_at(tx.connection, now)
        });
    }
}

fn lease(tx: &mut Tx<'_>, now: Timestamp, worker: &str, limit: usize) -> rusqlite::Result<Vec<LeaseId>> {
    let claim = Claim {
        worker: worker.parse().unwrap(),
        queues: None,
        kinds: vec![KIND.parse().unwrap(), "else".parse().unwrap()],
        limit,
        max_bytes: usize::MAX,
        caps: HashMap::new(),
        lease: Duration::from_secs(30),
        wait: None,
    };
    let mut given = Vec::new();
    claim::claim(tx, now, &claim, limit, &mut given)?;
    Ok(given.into_iter().map(|leased| leased.lease).collect())
}

/// What SQLite would do for a statement, step by step.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let mut rows = statement.raw_query();
    let mut steps = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        steps.push(row.get("detail").unwrap());
    }
    steps
}

fn is_cheap(step: &str) -> bool {
    // In the order of the index, and only the first of them.
    let first = step == "SCAN live USING COVERING INDEX live_running";
    let tables = ["job", "live", "bundle", "done", "failure", "progress", "request"];
    let scans = tables.iter().any(|table| step.split(' ').take(2).eq(["SCAN", table]));
    !step.contains("TEMP B-TREE") && !step.contains("AUTOMATIC") && (first || !scans)
}

fn check(connection: &Connection, statements: &BTreeSet<String>) {
    for sql in statements {
        let plan = plan(connection, sql);
        assert!(plan.iter().all(|step| is_cheap(step)), "{sql}: {plan:#?}");
        assert_eq!(prepared_again(connection, sql), 0, "planned anew for each value: {sql}");
    }
}

/// How often SQLite plans a statement anew because its parameters have changed.
fn prepared_again(connection: &Connection, sql: &str) -> i32 {
    if !sql.starts_with("SELECT") {
        // To write twice is not possible everywhere, and a PRAGMA takes effect while it is prepared.
        return 0;
    }
    let mut statement = connection.prepare(sql).unwrap();
    for value in 1..=2 {
        for parameter in 1..=statement.parameter_count() {
            statement.raw_bind_parameter(parameter, value).unwrap();
        }
        let mut rows = statement.raw_query();
        while rows.next().unwrap().is_some() {}
        drop(rows);
        statement.clear_bindings();
    }
    statement.get_status(StatementStatus::RePrepare)
}

#[test]
fn statements_find_their_rows_by_an_index() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [empty, mut full] = dirs.each_ref().map(|dir| {
        drop(open::lock_directory(dir.path()).unwrap());
        Writer::open(dir.path())
    });
    for round in 0..20 {
        full.live(round);
        full.follow(&format!("c-{round}"));
    }
    full.tick_after(24 * 3600);
    let statements: BTreeSet<String> = full.said.try_iter().collect();
    assert!(statements.len() > 45, "{statements:#?}");
    check(&empty.state.connection, &statements);

    for round in 20..40 {
        full.live(round);
    }
    full.submit((0..3000).map(|n| job(&format!("queued-{n}")).queue("long")).collect());
    full.submit((0..3000).map(|n| job(&format!("later-{n}")).delay(Duration::from_secs(9))).collect());
    let leases = full.claim(2000);
    full.settle(&leases[..1000], Report::Succeeded(Payload::none()));
    check(&full.state.connection, &statements);
    full.state.connection.execute_batch("ANALYZE").unwrap();
    check(&full.state.connection, &statements);
}

#[test]
fn a_plan_that_reads_everything_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open::lock_directory(dir.path()).unwrap());
    let Writer { state, .. } = Writer::open(dir.path());
    for sql in [
        "SELECT num FROM live WHERE priority = 1",
        "SELECT count(*) FROM done",
        "SELECT num FROM live WHERE line = 1 AND state = 2 ORDER BY due LIMIT 1",
    ] {
        assert!(!plan(&state.connection, sql).iter().all(|step| is_cheap(step)), "{sql}");
    }
}

#[test]
fn a_statement_is_planned_once() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = open::lock_directory(dir.path()).unwrap();
    for connection in [open::writer(dir.path(), 0).unwrap(), open::reader(dir.path(), 0).unwrap()] {
        let mut statement =
            connection.prepare("SELECT num FROM job WHERE num > ?1 ORDER BY num LIMIT ?2").unwrap();
        for limit in 1..4 {
            assert!(statement.query([0, limit]).unwrap().next().unwrap().is_none());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
