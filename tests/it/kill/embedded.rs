//! `kill -9` of the one server of an embedded store.

use std::time::Instant;

use fastrand::Rng;

use super::{check, course::Course, settings, totals::Totals};
use crate::support::Server;

/// Kills of one run, unless JOBWIRE_TEST_KILLS says.
const KILLS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_told_changes() {
    super::run(KILLS, async |rng, kills, totals| Kills::new(rng).run(kills, totals).await).await;
}

struct Kills {
    course: Course,
    server: Server,
}

impl Kills {
    fn new(rng: Rng) -> Self {
        Self { course: Course::new(rng, 1), server: Server::unstarted() }
    }

    async fn run(mut self, kills: usize, totals: &mut Totals) {
        for _ in 0..kills {
            if self.course.rng.u8(..4) == 0 {
                // Rather early: before it listens.
                let longest = totals.longest_recent_start() * 3 / 2;
                let after = longest.mul_f64(self.course.rng.f64().powi(2));
                let settings = settings::draw(&mut self.course.rng, settings::LEASES);
                self.server.start_and_kill(&settings, after);
                totals.fault("kill while it starts");
            } else {
                self.start(totals);
                self.course.check(&self.addresses()).await;
                let load = self.course.load(&self.addresses());
                self.course.wait_to_strike(&load).await;
                self.server.kill();
                self.course.unload(load, true).await;
                totals.fault("kill");
            }
            if self.course.rng.bool() && self.course.looked > 0 {
                check::verify(&self.server);
            }
        }
        // What was leased to the worker and never reached it is over soon.
        self.server.start_again("[workers]\nlease = \"1s\"\nheartbeat = \"100ms\"\n");
        let addresses = self.addresses();
        self.course.end(&addresses, totals, async || check::verify(&self.server)).await;
    }

    /// Another one after each start.
    fn addresses(&self) -> [String; 1] {
        [self.server.address().to_owned()]
    }

    fn start(&mut self, totals: &mut Totals) {
        let settings = settings::draw(&mut self.course.rng, settings::LEASES);
        let begin = Instant::now();
        self.server.start_again(&settings);
        totals.starts.push(begin.elapsed());
    }
}
