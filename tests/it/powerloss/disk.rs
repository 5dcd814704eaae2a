//! A disk that may lose whatever was not synced: in any part, in any order, torn within a write.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use super::trace::Deed;

/// Disks write whole sectors. Bytes.
const SECTOR: usize = 512;

/// Syncs that are without effect, to see what they are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    Everything,
    Log,
    Database,
    Directories,
}

impl Broken {
    fn is(self, name: &str, directory: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Log => name.ends_with("-wal"),
            Self::Database => name.ends_with(".db"),
            Self::Directories => directory,
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Arc<[u8]> },
    Truncate { length: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// May be on the disk; a sync would put it there.
    Pending,
    Synced,
    /// A sync of it has failed. The kernel takes it for written from then on, and no later sync puts it on the disk.
    Dropped,
}

/// A file as the disk knows it.
#[derive(Clone, Debug, Default)]
struct File {
    /// On the disk for certain; `changes` come on top, in order.
    base: Vec<u8>,
    /// Each with its number in the order of all.
    changes: Vec<(u64, Change, Fate)>,
}

impl File {
    fn fold(&mut self) {
        let synced = self.changes.iter().take_while(|(_, _, fate)| *fate == Fate::Synced).count();
        for (_, change, _) in self.changes.drain(..synced) {
            apply(&mut self.base, &change, usize::MAX);
        }
    }
}

fn apply(image: &mut Vec<u8>, change: &Change, torn: usize) {
    match change {
        Change::Write { at, bytes } => {
            // Sectors of the file, not of the write.
            let whole = (at / SECTOR).saturating_add(torn).saturating_mul(SECTOR).saturating_sub(*at);
            let whole = whole.min(bytes.len());
            let end = at + whole;
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*at..end].copy_from_slice(&bytes[..whole]);
        }
        Change::Truncate { length } => image.resize(*length, 0),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

/// What a name stands for. The last one is what processes see; any may be on the disk from the first on.
#[derive(Clone, Debug)]
struct Name {
    synced: Option<Node>,
    changes: Vec<(u64, Option<Node>)>,
}

impl Name {
    fn now(&self) -> Option<Node> {
        self.changes.last().map_or(self.synced, |(_, node)| *node)
    }
}

/// Which of the changes that were not synced the disk has after all.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// It has none of them.
    Everything,
    /// It has all of them.
    Nothing,
    /// It has this one only, by the number modulo how many there are.
    AllBut(usize),
    /// It has all but this one.
    Only(usize),
    /// It has each with a chance, in percent.
    Random { seed: u64, kept: u8 },
}

/// All files after a number of deeds.
#[derive(Clone, Debug)]
pub struct Disk {
    broken: Broken,
    deeds: u64,
    files: Vec<File>,
    inodes: HashMap<u64, usize>,
    names: BTreeMap<String, Name>,
    /// Syncs under way: how many deeds there were before.
    syncs: HashMap<u64, u64>,
}

impl Disk {
    /// What is in a directory, all of it synced.
    pub fn of(root: &Path) -> Self {
        let mut disk = Self {
            broken: Broken::Nothing,
            deeds: 0,
            files: Vec::new(),
            inodes: HashMap::new(),
            names: BTreeMap::new(),
            syncs: HashMap::new(),
        };
        disk.add(root, "");
        disk
    }

    /// The same with another sort of trouble.
    pub fn with(&self, broken: Broken) -> Self {
        Self { broken, ..self.clone() }
    }

    fn add(&mut self, root: &Path, below: &str) {
        for entry in fs::read_dir(root.join(below)).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("text");
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            let node = if entry.path().is_dir() {
                Node::Directory
            } else {
                let base = fs::read(entry.path()).expect("a file");
                self.files.push(File { base, changes: Vec::new() });
                Node::File(self.files.len() - 1)
            };
            self.names.insert(name.clone(), Name { synced: Some(node), changes: Vec::new() });
            if node == Node::Directory {
                self.add(root, &name);
            }
        }
    }

    /// Carries out the next deed.
    pub fn apply(&mut self, deed: &Deed) {
        self.deeds += 1;
        match deed {
            Deed::Create { file, name } => {
                self.files.push(File::default());
                self.inodes.insert(*file, self.files.len() - 1);
                self.rename(name, Some(Node::File(self.files.len() - 1)));
            }
            Deed::Open { file, name } => {
                if let Some(Node::File(known)) = self.names.get(name).and_then(Name::now) {
                    self.inodes.insert(*file, known);
                }
            }
            Deed::MakeDirectory { name } => self.rename(name, Some(Node::Directory)),
            Deed::Unlink { name } => self.rename(name, None),
            Deed::Write { file, at, bytes } => {
                self.change(*file, Change::Write { at: *at, bytes: bytes.clone() });
            }
            Deed::Truncate { file, length } => self.change(*file, Change::Truncate { length: *length }),
            Deed::SyncBegins { sync } => drop(self.syncs.insert(*sync, self.deeds)),
            Deed::SyncEnds { file, name, sync } => {
                let before = self.syncs.remove(sync).expect("a sync begins before it ends");
                let directory =
                    name.is_empty() || self.names.get(name).and_then(Name::now) == Some(Node::Directory);
                if self.broken.is(name, directory) {
                } else if directory {
                    self.sync_directory(name, before);
                } else {
                    self.settle(*file, before, Fate::Synced);
                }
            }
            Deed::SyncFails { file, sync } => {
                let before = self.syncs.remove(sync).expect("a sync begins before it fails");
                self.settle(*file, before, Fate::Dropped);
            }
        }
    }

    fn rename(&mut self, name: &str, node: Option<Node>) {
        let entry = self.names.entry(name.to_owned()).or_insert(Name { synced: None, changes: Vec::new() });
        entry.changes.push((self.deeds, node));
    }

    fn change(&mut self, inode: u64, change: Change) {
        let file = self.inodes[&inode];
        self.files[file].changes.push((self.deeds, change, Fate::Pending));
    }

    fn settle(&mut self, inode: u64, before: u64, fate: Fate) {
        // A directory's has failed.
        let Some(&file) = self.inodes.get(&inode) else { return };
        let file = &mut self.files[file];
        for (number, _, old) in &mut file.changes {
            if *number <= before && *old == Fate::Pending {
                *old = fate;
            }
        }
        file.fold();
    }

    fn sync_directory(&mut self, directory: &str, before: u64) {
        for (name, entry) in &mut self.names {
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            if parent == directory {
                let done = entry.changes.iter().take_while(|(number, _)| *number <= before).count();
                if let Some((_, node)) = entry.changes.drain(..done).next_back() {
                    entry.synced = node;
                }
            }
        }
    }

    /// Changes that a loss of power may undo.
    pub fn unsynced(&self) -> usize {
        let files = self.files.iter().flat_map(|file| &file.changes);
        files.filter(|(_, _, fate)| *fate != Fate::Synced).count()
            + self.names.values().map(|name| name.changes.len()).sum::<usize>()
    }

    /// The files after the power came back. The last change that a file got is torn after `torn` sectors.
    pub fn after(&self, loss: Loss, torn: usize) -> BTreeMap<String, Vec<u8>> {
        let mut lottery = Lottery::new(loss, self.unsynced());
        let mut images = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let kept: Vec<bool> =
                file.changes.iter().map(|(_, _, fate)| *fate == Fate::Synced || lottery.keeps()).collect();
            images.push(kept);
        }
        let mut found = BTreeMap::new();
        let mut missing: Vec<&str> = Vec::new();
        for (name, entry) in &self.names {
            let newest = entry.changes.iter().rfind(|_| lottery.keeps());
            let node = newest.map_or(entry.synced, |(_, node)| *node);
            // Sorted: a directory comes before what is in it.
            let parent = name.rsplit_once('/').map(|(parent, _)| parent);
            if node.is_none() || parent.is_some_and(|parent| missing.contains(&parent)) {
                missing.push(name);
                continue;
            }
            if let Some(Node::File(file)) = node {
                found.insert(name.clone(), image(&self.files[file], &images[file], torn));
            }
        }
        found
    }
}

fn image(file: &File, kept: &[bool], torn: usize) -> Vec<u8> {
    let mut image = file.base.clone();
    let changes = file.changes.iter().zip(kept).filter(|(_, kept)| **kept).map(|(change, _)| change);
    let mut changes = changes.peekable();
    while let Some((_, change, fate)) = changes.next() {
        let last = changes.peek().is_none() && *fate != Fate::Synced;
        apply(&mut image, change, if last { torn } else { usize::MAX });
    }
    image
}

/// Draws for each change in turn whether the disk has it.
struct Lottery {
    loss: Loss,
    of: usize,
    drawn: usize,
    random: fastrand::Rng,
}

impl Lottery {
    fn new(loss: Loss, of: usize) -> Self {
        let seed = if let Loss::Random { seed, .. } = loss { seed } else { 0 };
        Self { loss, of: of.max(1), drawn: 0, random: fastrand::Rng::with_seed(seed) }
    }

    fn keeps(&mut self) -> bool {
        self.drawn += 1;
        match self.loss {
            Loss::Everything => false,
            Loss::Nothing => true,
            Loss::AllBut(one) => self.drawn - 1 == one % self.of,
            Loss::Only(one) => self.drawn - 1 != one % self.of,
            Loss::Random { kept, .. } => self.random.u8(..100) < kept,
        }
    }
}
