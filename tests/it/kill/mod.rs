//! Faults, again and again on the same data, under load and during recovery, with other settings at each start. A ledger
//! outside the servers knows what was acknowledged and what was told; all of it must stay so.

mod asks;
mod check;
mod clients;
mod course;
mod embedded;
mod ledger;
mod replicas;
mod settings;
mod totals;
mod watchers;
mod workers;

use std::{fmt, str::FromStr};

use fastrand::Rng;

pub use self::{asks::Ask, course::Course, ledger::Shared, replicas::verify, totals::Totals};

/// Then all that happened to a store is compared, and the next one begins: what is kept in memory stays bounded, and
/// what a seed repeats is short.
const FAULTS_OF_A_STORE: usize = 50;

/// Lets one store after the other have its faults: as many in all as JOBWIRE_TEST_KILLS says.
///
/// JOBWIRE_TEST_SEED repeats the draws of the store that it was printed for; the moments of the faults within the work of
/// the servers stay a matter of luck.
async fn run(unless_told: usize, mut store: impl AsyncFnMut(Rng, usize, &mut Totals)) {
    let faults = number("JOBWIRE_TEST_KILLS").unwrap_or(unless_told);
    let mut seed = number("JOBWIRE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut totals = Totals::default();
    while totals.faults() < faults {
        println!("SEED={seed}");
        let of_this_one = FAULTS_OF_A_STORE.min(faults - totals.faults());
        store(Rng::with_seed(seed), of_this_one, &mut totals).await;
        println!("{totals}");
        seed = seed.wrapping_add(1);
    }
}

fn number<T: FromStr<Err: fmt::Debug>>(variable: &str) -> Option<T> {
    Some(std::env::var(variable).ok()?.parse().expect("a number"))
}
