//! What the recorder wrote down.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

use crate::{
    faults::Faults,
    support::{Server, compile_preload},
};

/// One thing that a process did to its files.
#[derive(Clone, Debug)]
pub struct Event {
    /// Length of the record up to here, bytes.
    pub end: u64,
    pub deed: Deed,
}

/// Files are told by their inodes, which come back after an unlink.
#[derive(Clone, Debug)]
pub enum Deed {
    Create { file: u64, name: String },
    Open { file: u64, name: String },
    MakeDirectory { name: String },
    Unlink { name: String },
    Write { file: u64, at: usize, bytes: Arc<[u8]> },
    Truncate { file: u64, length: usize },
    SyncBegins { sync: u64 },
    SyncEnds { file: u64, name: String, sync: u64 },
    SyncFails { file: u64, sync: u64 },
}

const HEAD: usize = 24;

/// Reads all that was recorded.
pub fn read(path: &Path) -> Vec<Event> {
    let record = fs::read(path).expect("a record");
    let mut events = Vec::new();
    let mut rest = &record[..];
    while let Some((head, tail)) = rest.split_at_checked(HEAD) {
        let number = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let size = u32::from_ne_bytes(head[4..8].try_into().expect("4 bytes"));
        let (file, place) = (number(8), number(16));
        // Killed while it was written: the call has not returned.
        let Some((bytes, tail)) = tail.split_at_checked(size as usize) else { break };
        let name = || String::from_utf8(bytes.to_vec()).expect("a name is text");
        let deed = match head[0] {
            b'C' => Deed::Create { file, name: name() },
            b'O' => Deed::Open { file, name: name() },
            b'D' => Deed::MakeDirectory { name: name() },
            b'U' => Deed::Unlink { name: name() },
            b'W' => Deed::Write { file, at: place as usize, bytes: bytes.into() },
            b'T' => Deed::Truncate { file, length: place as usize },
            b'B' => Deed::SyncBegins { sync: place },
            b'E' => Deed::SyncEnds { file, name: name(), sync: place },
            b'F' => Deed::SyncFails { file, sync: place },
            other => panic!("a record of {other}"),
        };
        rest = tail;
        events.push(Event { end: (record.len() - rest.len()) as u64, deed });
    }
    events
}

/// Where a process is recorded, and the files that it works on.
pub struct Recorder {
    dir: TempDir,
}

impl Recorder {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("disk")).expect("a directory");
        compile_preload("recorder", dir.path());
        Self { dir }
    }

    /// The root of all that is recorded.
    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub fn record(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    /// Length of the record: what ended before it has happened.
    pub fn now(&self) -> u64 {
        fs::metadata(self.record()).map_or(0, |metadata| metadata.len())
    }

    /// Starts a server on the disk, recorded. Its calls go on to the `faults`.
    pub fn server(&self, faults: &Faults, config: &str) -> Server {
        let text = |path: PathBuf| path.to_str().expect("text").to_owned();
        let preload = format!("{}:{}", text(self.library()), text(faults.library()));
        let mut variables = faults.variables().to_vec();
        variables.retain(|(name, _)| *name != "LD_PRELOAD");
        variables.extend([
            ("LD_PRELOAD", preload),
            ("RECORD_ROOT", text(self.disk())),
            ("RECORD_TO", text(self.record())),
            ("RECORD_KILL", text(self.dir.path().join("kill"))),
        ]);
        let config = format!("data = {:?}\n{config}", text(self.disk().join("data")));
        Server::with_variables(&config, &variables)
    }

    /// `kill -9` between two calls.
    pub async fn kill(&self, server: &mut Server) {
        let file = self.dir.path().join("kill");
        fs::write(&file, "").expect("a control file");
        server.ended().await;
        fs::remove_file(&file).expect("the control file");
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("recorder.so")
    }
}
