//! Disks that fail: `faults.c` is preloaded into the program and told what to do by control files.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::support::{Server, compile_preload};

/// Where the control files are, and the library that looks for them.
pub struct Faults {
    dir: TempDir,
}

impl Faults {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        compile_preload("faults", dir.path());
        Self { dir }
    }

    pub fn library(&self) -> PathBuf {
        self.dir.path().join("faults.so")
    }

    /// What brings them into a process.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        let text = |path: PathBuf| path.to_str().expect("text").to_owned();
        [("LD_PRELOAD", text(self.library())), ("FAULTS", text(self.dir.path().to_owned()))]
    }

    pub fn server(&self, config: &str) -> Server {
        Server::with_variables(config, &self.variables())
    }

    pub fn begin(&self, fault: &str) {
        fs::write(self.dir.path().join(fault), "").expect("a control file");
    }

    pub fn end(&self, fault: &str) {
        fs::remove_file(self.dir.path().join(fault)).expect("the control file");
    }

    /// Syncs of the database that worked, so far.
    pub fn syncs(&self) -> usize {
        fs::read(self.dir.path().join("syncs")).map_or(0, |syncs| syncs.len())
    }

    /// Whether a call has failed by its number, since this was asked last.
    pub fn fired(&self) -> bool {
        fs::remove_file(self.dir.path().join("fired")).is_ok()
    }
}
