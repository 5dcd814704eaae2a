//! Runs the target that FUZZ_TARGET names, and writes its seeds to FUZZ_SEEDS. Without a name it lists all there are.
#![no_main]

use std::{env, fs, path::Path, process::exit, sync::OnceLock};

use jobwire::fuzz::{Target, targets};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let Ok(name) = env::var("FUZZ_TARGET") else {
        targets().for_each(|target| println!("{}", target.name));
        exit(0);
    };
    let target = targets().find(|target| target.name == name).expect("FUZZ_TARGET names a target");
    if let Ok(dir) = env::var("FUZZ_SEEDS") {
        for (n, seed) in (target.seeds)().iter().enumerate() {
            fs::write(Path::new(&dir).join(format!("seed-{n}")), seed).expect("the seeds are written");
        }
    }
    target
}

fuzz_target!(
    init: { let _ = TARGET.set(chosen()); },
    |bytes: &[u8]| if let Some(target) = TARGET.get() { (target.run)(bytes) }
);
