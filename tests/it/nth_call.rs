//! Every call on the files of the database fails once, or from then on: the first one, the second one, and so on. The
//! error is told, nothing is acknowledged after it, and the next start finds all that was acknowledged before.
//!
//! JOBWIRE_TEST_CALLS=all fails every single one; a number says how many are drawn.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use jobwire::{
    proto::{GetResultRequest, PayloadFormat, SubmitRequest, job::State, payload::Body},
    store::sqlite,
};
use tonic::Code;

use crate::{
    faults::Faults,
    support::{Client, Server, lazy_clients, seconds, submit},
};

/// Faults of one run, unless JOBWIRE_TEST_CALLS says.
const DRAWN: usize = 40;

/// Numbers of calls are drawn up to this one.
const CALLS: f64 = 800.0;

/// At the same time.
const SERVERS: usize = 3;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Half of the bytes only.
const SHORT: i32 = 0;

const SORTS: [(&str, i32); 9] = [
    ("write", EIO),
    ("write", ENOSPC),
    ("write", SHORT),
    ("sync", EIO),
    ("sync", ENOSPC),
    ("read", EIO),
    ("read", SHORT),
    ("truncate", EIO),
    ("unlink", EIO),
];

#[derive(Clone, Copy, Debug)]
struct Fault {
    call: &'static str,
    number: usize,
    error: i32,
    times: usize,
}

#[tokio::test]
async fn every_call_may_fail() {
    let asked = std::env::var("JOBWIRE_TEST_CALLS").unwrap_or_else(|_| DRAWN.to_string());
    let fired = if asked == "all" {
        let mut fired = 0;
        for (call, error) in SORTS {
            for times in [1, usize::MAX >> 33] {
                let mut number = 1;
                while survive(Fault { call, number, error, times }).await {
                    number += 1;
                }
                println!("{call} {error}: {} calls, {times} times", number - 1);
                fired += number - 1;
            }
        }
        fired
    } else {
        let count = asked.parse().expect("a number of calls, or `all`");
        let faults = (0..count).map(|_| {
            let (call, error) = fastrand::choice(SORTS).expect("a sort");
            let number = CALLS.powf(fastrand::f64()) as usize;
            Fault { call, number, error, times: if fastrand::bool() { 1 } else { usize::MAX >> 33 } }
        });
        let results = futures_util::stream::iter(faults).map(survive).buffer_unordered(SERVERS);
        results.filter(|fired| std::future::ready(*fired)).count().await
    };
    println!("{fired} calls failed");
    assert!(fired > 0, "nothing has failed");
}

/// Whether there was such a call.
async fn survive(fault: Fault) -> bool {
    let faults = Faults::new();
    let Fault { call, number, error, times } = fault;
    let disk = tempfile::tempdir().expect("a temporary directory");
    let config = format!(
        "data = {:?}\n[store]\nwal_limit_bytes = 1048576\n",
        disk.path().join("data").to_str().expect("text")
    );
    // A log to recover from, for every second one.
    let mut told = BTreeMap::new();
    if number % 2 == 0 {
        let mut server = Server::with(&config);
        work(&mut server.client().await, 8, &mut told).await.expect("answers");
        server.kill();
    }

    let mut variables = faults.variables().to_vec();
    variables.push(("FAULT_AT", format!("{call} {number} {error} {times}")));
    match Server::try_with_variables(&config, &variables) {
        Err(said) => assert!(said.contains("rror"), "{fault:?}: {said}"),
        Ok(mut server) => {
            let (mut client, _) = lazy_clients(server.address());
            if let Err(refused) = work(&mut client, 24, &mut told).await {
                // Or the server has left without a word: then it is the client's own error.
                let told = matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
                assert!(told, "{fault:?}: {refused:?}");
                for _ in 0..3 {
                    let late = client.submit(submit("echo", "1")).await;
                    assert!(late.is_err(), "{fault:?}: acknowledged after {refused:?}");
                }
                assert!(!server.ended().await.success(), "{fault:?}: it says that it has failed");
            } else {
                server.kill();
            }
        }
    }
    let fired = faults.fired();

    let server = Server::with(&config);
    let report = sqlite::verify(&disk.path().join("data")).expect("the store can be read");
    assert!(report.problems.is_empty(), "{fault:?}: {:?}", report.problems);
    let mut client = server.client().await;
    for (job_id, payload) in told {
        let request = GetResultRequest {
            job_id: job_id.clone(),
            wait: Some(seconds(20.0)),
            payload_format: PayloadFormat::Raw.into(),
        };
        let reply = client.get_result(request).await;
        let job = reply.unwrap_or_else(|why| panic!("{fault:?}: {job_id}: {why:?}")).into_inner().job;
        let job = job.expect("a job");
        assert_eq!(job.state(), State::Succeeded, "{fault:?}: {job:?}");
        let body = job.output.and_then(|output| output.body);
        assert!(body == Some(Body::Data(payload.into())), "{fault:?}: {job_id} has another output");
    }
    work(&mut client, 1, &mut BTreeMap::new()).await.expect("work goes on");
    fired
}

/// Submits, and notes what was acknowledged. Large enough for the log to be written back.
async fn work(
    client: &mut Client,
    jobs: usize,
    told: &mut BTreeMap<String, String>,
) -> Result<(), tonic::Status> {
    for number in 0..jobs {
        let payload = format!("{:?}", format!("{number} ").repeat(20_000));
        let request = SubmitRequest { wait: Some(seconds(20.0)), ..submit("echo", &payload) };
        let reply = client.submit(request).await?.into_inner();
        told.insert(reply.job.expect("a job").job_id, payload);
        if number % 8 == 7 {
            // Long enough for the log to be looked at.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
