//! Tests by chance that say what they came to: a checker finds only what its workload can produce.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    env,
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// What one run met: states, transitions, refusals, by the names that a reader would give them.
pub type Met = BTreeSet<String>;

/// Carries out so many runs, the same ones each time, prints in how many of them each thing was met, and fails if one
/// of `expected` never was. JOBWIRE_SEED draws other runs, JOBWIRE_RUNS more of them.
pub fn explore<S: Strategy>(
    runs: u32,
    strategy: &S,
    expected: &[&str],
    run: impl Fn(S::Value) -> Result<Met, TestCaseError>,
) {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u32>().expect("a number"));
    let (runs, seed) = (number("JOBWIRE_RUNS").unwrap_or(runs), number("JOBWIRE_SEED").unwrap_or(1));
    let settings =
        Config { cases: runs, max_shrink_iters: 500, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let counts = RefCell::new(BTreeMap::<String, u32>::new());
    let tested = TestRunner::new_with_rng(settings, rng).run(strategy, |value| {
        for met in run(value)? {
            *counts.borrow_mut().entry(met).or_default() += 1;
        }
        Ok(())
    });
    if let Err(failure) = tested {
        panic!("JOBWIRE_SEED={seed}: {failure}");
    }
    let counts = counts.into_inner();
    println!("JOBWIRE_SEED={seed}, {runs} runs; the share of them that met");
    for (met, count) in &counts {
        println!("{:6.1} % {met}", f64::from(*count) * 100.0 / f64::from(runs));
    }
    let never: Vec<_> = expected.iter().filter(|met| !counts.contains_key(**met)).collect();
    assert!(never.is_empty(), "no run met {never:?}");
}
