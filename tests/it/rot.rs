//! Files that have rotted: flipped bits, sectors of zeros, cut tails. They are refused, or the damage is told, or it makes
//! no difference; what was stored is never handed out as something else.
//!
//! JOBWIRE_TEST_DAMAGES says how many are tried.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use jobwire::{
    config::Config,
    job::{Error, Job, JobId, Timestamp, View},
    proto::{CancelJobRequest, JobSpec, SubmitRequest, job_spec::Start},
    store::{Store, sqlite, sqlite::SqliteStore},
};

use crate::support::{Client, Server, jobwire, memory_dir, seconds, submit};

/// Damages of one run, unless JOBWIRE_TEST_DAMAGES says.
const DAMAGES: usize = 400;

const SECTOR: usize = 512;

type Files = BTreeMap<String, Vec<u8>>;

/// A store as it should be: its files, and the jobs in them.
struct Sound {
    name: &'static str,
    files: Files,
    jobs: BTreeMap<String, Job>,
}

/// What came of a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// The store does not open.
    NotOpened,
    /// It opens, and those who ask for some of it are refused.
    Refused,
    /// All is there and as it was.
    NoDifference,
    /// Something differs, and `verify` says so.
    Verified,
    /// The end of a log is missing, as after a crash: no one can tell.
    TornTail,
    /// A bare column differs, such as a time or a label, and nobody can say so.
    Bare,
}

#[tokio::test(flavor = "multi_thread")]
async fn rotten_files_are_never_served_as_sound() {
    let damages =
        std::env::var("JOBWIRE_TEST_DAMAGES").map_or(DAMAGES, |text| text.parse().expect("a number"));
    let stores = stores().await;
    let mut ends: BTreeMap<(&str, &str, End), usize> = BTreeMap::new();
    for _ in 0..damages {
        let sound = fastrand::choice(&stores).expect("a store");
        let mut files = sound.files.clone();
        let (what, place) = damage(&mut files);
        let end = judge(sound, &files, &place).await;
        *ends.entry((sound.name, what, end)).or_default() += 1;
    }
    for (end, count) in &ends {
        println!("{count:6} {end:?}");
    }
    for end in [End::NotOpened, End::Refused] {
        assert!(damages < DAMAGES || ends.keys().any(|(.., met)| *met == end), "no damage was {end:?}");
    }
}

/// One that was stopped, one that was killed, and a backup.
async fn stores() -> Vec<Sound> {
    let mut server = Server::start();
    fill(&mut server.client().await).await;
    server.signal("TERM");
    server.ended().await;
    let stopped = read(&server.data());
    let copy = server.scratch().join("copy");
    let (data, target) = (server.data(), copy.to_str().expect("text").to_owned());
    let (code, said) = jobwire(&["backup", &target, "--data", data.to_str().expect("text")]);
    assert_eq!(code, Some(0), "{said}");
    let mut server = server.restart();
    fill(&mut server.client().await).await;
    server.kill();
    let killed = read(&server.data());
    let mut stores = Vec::new();
    for (name, files) in [("stopped", stopped), ("killed", killed), ("backup", read(&copy))] {
        let dir = put(&files);
        let store = open(dir.path()).expect("a sound store opens");
        let ids = all_ids(&store).await;
        assert!(ids.len() >= 30, "{name}: {}", ids.len());
        let mut jobs = BTreeMap::new();
        for id in ids {
            let job = get(&store, &id).await.expect("a sound job").expect("a job");
            jobs.insert(id, job);
        }
        store.close().await;
        stores.push(Sound { name, files, jobs });
    }
    stores
}

/// Something of everything that does not change by itself.
async fn fill(client: &mut Client) {
    for number in 0..40 {
        let text: String = (0..fastrand::usize(1..3000)).map(|_| fastrand::alphanumeric()).collect();
        let request = match number % 8 {
            0 => submit("sleep", r#"{"duration":"never"}"#),
            1 => submit("sleep", r#"{"duration":"1ms"}"#),
            _ => submit("echo", &format!("{text:?}")),
        };
        let spec = request.spec.expect("a spec");
        let waits = number % 8 > 5;
        let spec = JobSpec {
            labels: [("number".to_owned(), number.to_string())].into(),
            start: waits.then(|| Start::Delay(seconds(3600.0))),
            ..spec
        };
        let request =
            SubmitRequest { spec: Some(spec), wait: (!waits).then(|| seconds(20.0)), ..Default::default() };
        let reply = client.submit(request).await.expect("an answer").into_inner();
        if number % 8 == 7 {
            let job_id = reply.job.expect("a job").job_id;
            client.cancel_job(CancelJobRequest { job_id, ..Default::default() }).await.expect("an answer");
        }
    }
}

fn damage(files: &mut Files) -> (&'static str, String) {
    let place = fastrand::choice(files.keys().cloned().collect::<Vec<_>>()).expect("a file");
    let bytes = files.get_mut(&place).expect("the file");
    let at = fastrand::usize(..bytes.len());
    let what = match fastrand::u8(..10) {
        0..6 => {
            bytes[at] ^= 1 << fastrand::u8(..8);
            "bit"
        }
        6..9 => {
            let begin = at / SECTOR * SECTOR;
            let end = bytes.len().min(begin + SECTOR);
            bytes[begin..end].fill(0);
            "sector"
        }
        _ => {
            bytes.truncate(at);
            "tail"
        }
    };
    (what, place)
}

async fn judge(sound: &Sound, files: &Files, place: &str) -> End {
    let dir = put(files);
    let verified = match sqlite::verify(dir.path()) {
        Ok(report) => !report.problems.is_empty(),
        Err(_) => true,
    };
    let Ok(store) = open(dir.path()) else { return End::NotOpened };
    let (mut refused, mut differs) = (false, false);
    for (id, was) in &sound.jobs {
        match get(&store, id).await {
            Err(Error::DataLoss(_) | Error::StoreUnavailable(_)) => refused = true,
            Err(other) => panic!("{} {place}: {other:?}", sound.name),
            Ok(None) => differs = true,
            Ok(Some(is)) => {
                let body = |job: &Job| job.spec.payload.bytes();
                assert!(
                    body(&is) == body(was),
                    "{} {place}: {id} has another payload: {is:?} {was:?}",
                    sound.name
                );
                // The log may have lost the end of the job.
                let ended = is.state.is_final() && was.state.is_final();
                let end = |job: &Job| (job.state, job.run, job.output.clone(), job.error.clone());
                assert!(
                    !ended || end(&is) == end(was),
                    "{} {place}: {id} ended otherwise: {is:?} {was:?}",
                    sound.name
                );
                differs |= is != *was;
            }
        }
    }
    store.close().await;
    match (refused, differs) {
        (true, _) => End::Refused,
        (false, false) => End::NoDifference,
        (false, true) if verified => End::Verified,
        (false, true) if place.ends_with("-wal") => End::TornTail,
        (false, true) => End::Bare,
    }
}

fn read(data: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(data).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("text");
        if name.ends_with(".db") || name.ends_with("-wal") {
            files.insert(name, fs::read(entry.path()).expect("a file"));
        }
    }
    files
}

fn put(files: &Files) -> tempfile::TempDir {
    let dir = memory_dir();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("a file");
    }
    dir
}

fn open(data: &Path) -> Result<Arc<SqliteStore>, sqlite::OpenError> {
    let mut config = Config::default();
    config.store.readers = 1;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    SqliteStore::open(data, config.into(), Timestamp(now.as_millis() as i64))
}

async fn get(store: &SqliteStore, id: &str) -> Result<Option<Job>, Error> {
    let id: JobId = id.parse().expect("an id");
    Ok(store.get(vec![id], View::Full).await?.0.remove(0))
}

async fn all_ids(store: &SqliteStore) -> Vec<String> {
    let query = jobwire::store::ListQuery {
        filter: Default::default(),
        view: View::Basic,
        limit: 1000,
        oldest_first: true,
        after: None,
    };
    let page = store.list(query).await.expect("a list");
    page.jobs.iter().map(|job| job.id.to_string()).collect()
}
