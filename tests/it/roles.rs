//! A role that makes the tables and one that serves, set up as docs/scaling.md says.

use jobwire::proto::{SubmitRequest, job::State};

use crate::{
    calls::{eventually, finish, place, reach, result},
    changes::{cancel, delete, retry},
    postgres::{connect, execute, schema},
    support::{Server, jobwire, submit},
    workers::task,
};

const GUIDE: &str = include_str!("../../docs/scaling.md");

#[tokio::test]
async fn the_role_that_serves_needs_no_more_than_the_guide_grants() {
    let admin = schema();
    let block = GUIDE.split("<!-- grants -->\n```sql\n").nth(1).expect("the block of the guide");
    let grants = block.split("```").next().expect("its end");
    execute(&admin, &format!("create role jobwire_own login; create role jobwire_run login; {grants}"));
    let address = admin.split('?').next().expect("an address");
    let [own, run] = ["jobwire_own@", "jobwire_run@"].map(|role| address.replace("jobwire@", role));
    let refused = |words: &[&str]| {
        let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--store", &run]);
        assert_eq!(code, Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in {said}");
        }
    };
    refused(&["schema 0", "jobwire_run may not create tables", "jobwire migrate --to"]);
    let (code, said) = jobwire(&["migrate", "--to", &own]);
    assert_eq!(code, Some(0), "{said}");
    execute(&own, "revoke update, delete on done from jobwire_run");
    refused(&["jobwire_run may not update, delete on done", "docs/scaling.md"]);
    execute(&own, "revoke execute on function drop_done from jobwire_run");
    refused(&["jobwire_run may not execute on drop_done", "docs/scaling.md"]);
    execute(&own, "revoke all on jobwire from jobwire_run");
    refused(&["permission denied for table jobwire", "docs/scaling.md"]);
    execute(
        &own,
        "grant select on jobwire to jobwire_run; grant update, delete on done to jobwire_run; \
         grant execute on function drop_done to jobwire_run",
    );

    let server = Server::on_database(&run, "[defaults]\nretention = \"1s\"\n");
    let client = server.client().await;
    assert_eq!(finish(&client, submit("echo", "1")).await.state(), State::Succeeded);
    for id in ["a", "b"] {
        place(&client, SubmitRequest { job_id: id.into(), ..task("1") }).await;
        cancel(&client, id).await.expect("it is cancelled");
        assert_eq!(result(&client, id).await.state(), State::Cancelled);
    }
    retry(&client, "a").await.expect("again");
    reach(&client, "a", State::Queued).await;
    delete(&client, "b").await.expect("it is removed");
    // Partitions are made and dropped in the owner's name.
    let parts = connect(&own).await;
    let newest = async || -> i64 {
        parts
            .query_one("select max(high) from part where of = 'done'", &[])
            .await
            .expect("it is sound")
            .get(0)
    };
    let made = newest().await;
    execute(&own, "select setval('done_seq', 70000)");
    assert_eq!(finish(&client, submit("echo", "1")).await.state(), State::Succeeded);
    eventually(async || {
        let dropped = "select to_regclass('done_0') is null";
        let is_dropped = parts.query_one(dropped, &[]).await.expect("it is sound").get::<_, bool>(0);
        (is_dropped && newest().await > made).then_some(())
    })
    .await;
    drop(client);
    let said = server.log();
    assert!(!said.contains("permission denied"), "{said}");
}
