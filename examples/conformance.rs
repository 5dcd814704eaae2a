//! The Rust library as clients/conformance drives it: COMMAND ADDRESS ARGUMENTS, lines of JSON out.

use std::{env, error::Error, process, time::Duration};

use futures_util::StreamExt as _;
use jobwire::{
    Context, JobError,
    client::{self, Client, Worker},
    config::Workers,
    handlers::Handlers,
    proto::{
        CancelJobRequest, GetJobRequest, Job, JobFilter, JobSpec, Payload, SubmitRequest,
        WatchResultsRequest,
        payload::Body,
        watch_results_request::{OnGap, Start},
        watch_results_response::Event,
    },
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [command, address, arguments] = arguments.as_slice() else {
        return Err("usage: conformance COMMAND ADDRESS ARGUMENTS".into());
    };
    match ask(command, address, &serde_json::from_str(arguments)?).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = error.downcast::<client::Error>()?;
            let code = error.code().map(|code| screaming(&format!("{code:?}")));
            say(&json!({"error": code, "reason": error.reason()}));
            Ok(())
        }
    }
}

async fn ask(command: &str, address: &str, arguments: &Value) -> Result<(), Box<dyn Error>> {
    if command == "work" {
        return work(address, arguments).await;
    }
    let mut client = connect(address).await?;
    if arguments["compress"] == true {
        client = client.gzip();
    }
    let job_id = text(arguments, "job_id");
    match command {
        "submit" => {
            let request = SubmitRequest {
                spec: Some(spec(arguments)),
                request_id: text(arguments, "request_id"),
                ..Default::default()
            };
            let reply = client.submit(request).await?;
            let job_id = reply.job.unwrap_or_default().job_id;
            say(&json!({"job_id": job_id, "deduplicated": reply.deduplicated, "cursor": reply.cursor}));
        }
        "run" => {
            let request = SubmitRequest { spec: Some(spec(arguments)), ..Default::default() };
            let job = client.submit(request).await?.job.unwrap_or_default();
            let reply = client.result(&job.job_id, Duration::MAX).await?;
            say(&show(reply.job.unwrap_or_default())?);
        }
        "result" => {
            let wait = arguments["wait"].as_f64().map_or(Duration::MAX, Duration::from_secs_f64);
            let limit = arguments["limit"].as_f64().map_or(Duration::MAX, Duration::from_secs_f64);
            let Ok(reply) = timeout(limit, client.result(&job_id, wait)).await else {
                say(&json!({"error": "DEADLINE_EXCEEDED", "reason": null}));
                return Ok(());
            };
            let reply = reply?;
            let mut said = show(reply.job.unwrap_or_default())?;
            said["done"] = reply.done.into();
            say(&said);
        }
        "get" => say(&show(client.get(GetJobRequest { job_id, ..Default::default() }).await?)?),
        "cancel" => say(&show(client.cancel(CancelJobRequest { job_id, ..Default::default() }).await?)?),
        "watch" => watch(&client, arguments).await?,
        _ => return Err("unknown command".into()),
    }
    Ok(())
}

/// Connecting says at once that nobody is there; the scenarios have servers that come back.
async fn connect(address: &str) -> Result<Client, client::Error> {
    loop {
        match Client::connect(address).await {
            Err(error) if error.is_unreachable() => sleep(Duration::from_millis(100)).await,
            connected => return connected,
        }
    }
}

/// Until `count` outcomes came, or a gap.
async fn watch(client: &Client, arguments: &Value) -> Result<(), Box<dyn Error>> {
    let queues = arguments["queues"].as_array().into_iter().flatten();
    let queues = queues.filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    let on_gap = OnGap::from_str_name(&text(arguments, "on_gap")).unwrap_or_default();
    let request = WatchResultsRequest {
        filter: Some(JobFilter { queues, ..Default::default() }),
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        on_gap: on_gap.into(),
        start: arguments["after_cursor"].as_str().map(|cursor| Start::AfterCursor(cursor.to_owned())),
        ..Default::default()
    };
    let mut left = arguments["count"].as_u64().unwrap_or(u64::MAX);
    let mut messages = client.watch(request);
    while left > 0
        && let Some(message) = messages.next().await
    {
        let message = message?;
        match message.event {
            Some(Event::Finished(job)) => {
                say(&json!({"finished": job.job_id}));
                left -= 1;
            }
            Some(Event::Checkpoint(_)) => say(&json!({"checkpoint": message.cursor})),
            Some(Event::Gap(gap)) => {
                say(&json!({"gap": gap.reason}));
                left = 0;
            }
            _ => {}
        }
    }
    Ok(())
}

async fn work(address: &str, arguments: &Value) -> Result<(), Box<dyn Error>> {
    let mut handlers = Handlers::new(&Workers::default());
    handlers.add("double", async |_: Context, number: i64| Ok::<_, JobError>(number * 2))?;
    handlers.add("large", async |_: Context, size: usize| Ok::<_, JobError>("x".repeat(size)))?;
    handlers.add("die", async |_: Context, _: Value| -> Result<(), JobError> { process::exit(9) })?;
    handlers.add("fail", fail)?;
    handlers.add("hold", hold)?;
    let queues = arguments["queues"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let concurrency = arguments["concurrency"].as_u64().map_or(16, |jobs| jobs as u16);
    let mut worker = Worker::new(address, handlers)?.queues(queues).concurrency(concurrency);
    if arguments["compress"] == true {
        worker = worker.gzip();
    }
    say(&json!({"working": true}));
    worker.drain_timeout(Duration::from_secs(20)).run(jobwire::stop_signal()).await?;
    say(&json!({"drained": true}));
    Ok(())
}

async fn fail(context: Context, how: Value) -> Result<Value, JobError> {
    let attempt = context.attempt();
    if how["until"].as_u64().is_some_and(|until| u64::from(attempt) >= until) {
        let details = context.last_progress().and_then(|progress| progress.details.clone());
        let checkpoint = details.and_then(|details| serde_json::from_slice(&details.bytes()).ok());
        return Ok(json!({"attempt": attempt, "checkpoint": checkpoint.unwrap_or(Value::Null)}));
    }
    context.checkpoint(0.5, "half", json!({"from": attempt}))?;
    let Some(code) = how["code"].as_str() else { return Err(JobError::retryable("error", "boom")) };
    let error = match how["retryable"].as_bool() {
        Some(false) => JobError::permanent(code, "no"),
        _ => JobError::retryable(code, "no"),
    };
    let error = error.with_details(&how);
    Err(match how["after"].as_f64() {
        Some(seconds) => error.retry_after(Duration::from_secs_f64(seconds)),
        None => error,
    })
}

async fn hold(context: Context, seconds: Vec<f64>) -> Result<&'static str, JobError> {
    let job_id = context.job_id().as_str();
    say(&json!({"started": job_id, "attempt": context.attempt()}));
    let now = seconds[seconds.len().min(context.attempt() as usize) - 1];
    let held = context.unless_stopped(sleep(Duration::from_secs_f64(now))).await;
    held.inspect_err(|_| say(&json!({"stopped": job_id})))?;
    Ok("held")
}

fn spec(arguments: &Value) -> JobSpec {
    let body = Some(Body::Text(arguments["payload"].to_string()));
    let payload = Payload { body, content_type: "application/json".into(), ..Default::default() };
    JobSpec {
        kind: text(arguments, "kind"),
        queue: text(arguments, "queue"),
        payload: Some(payload),
        ..Default::default()
    }
}

fn show(job: Job) -> Result<Value, Box<dyn Error>> {
    let state = job.state().as_str_name();
    let output = match job.output.and_then(|output| output.body) {
        Some(Body::Json(value)) => plain(value),
        Some(Body::Text(text)) => text.into(),
        _ => Value::Null,
    };
    Ok(json!({"job_id": job.job_id, "state": state, "output": output}))
}

fn plain(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        Some(Kind::BoolValue(value)) => value.into(),
        // The test's numbers are whole.
        Some(Kind::NumberValue(value)) => (value as i64).into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
        Some(Kind::StructValue(fields)) => {
            fields.fields.into_iter().map(|(name, value)| (name, plain(value))).collect()
        }
        _ => Value::Null,
    }
}

fn text(arguments: &Value, name: &str) -> String {
    arguments[name].as_str().unwrap_or_default().to_owned()
}

/// `NotFound` as the specification of gRPC spells it.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

fn say(line: &Value) {
    println!("{line}");
}
