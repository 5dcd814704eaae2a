//! Claims that hang.

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    replicas::{NOW, Replicas, submit},
    *,
};
use crate::store::{
    Claim, ClaimWait,
    suite::{World, job, secs},
};

/// A claim of one job that waits for it.
fn waiting() -> Claim {
    let wait =
        ClaimWait { slots: Arc::new(Semaphore::new(1)), end: CancellationToken::new(), handover: None };
    Claim { wait: Some(wait), ..World::wish(1) }
}

/// As long as a commit waits for a standby that is gone, for instance.
#[tokio::test]
async fn a_claim_that_hangs_lets_nothing_pile_up() {
    const CLAIMS: usize = 50;
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, [job("job-0")]).await;
    let other = replicas.schema.connect().await;
    other.batch_execute("begin; lock table ready").await.unwrap();
    let claims: Vec<_> = (0..CLAIMS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(NOW, waiting()).await.unwrap() })
        })
        .collect();
    sleep(secs(1)).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..10 {
        sleep(secs(2) / 10).await;
        store.signals().advance(None, true);
    }
    // The connection for hints may come and go.
    assert!(tasks() < before + 5, "{} tasks instead of {before}", tasks());
    other.batch_execute("commit").await.unwrap();
    submit(&store, (1..CLAIMS).map(|n| job(&format!("job-{n}")))).await;
    for claim in claims {
        let leased = timeout(secs(20), claim).await.expect("there is one for each").unwrap();
        assert_eq!(leased.len(), 1);
    }
}
