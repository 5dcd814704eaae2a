#!/usr/bin/env bash
# The contract's transcripts of JobService and WorkerService, their errors, health and reflection, with the real grpcurl.
set -euo pipefail

# shellcheck source=tests/server.sh
source "$(dirname "$0")/server.sh"
command -v grpcurl >/dev/null || die "grpcurl is missing: run \`make tools\`"

g() { grpcurl -plaintext -d "$2" "$ADDR" "jobwire.v1.$1"; }

passed=0 failed=0
last=$work/call

# Keeps what a command printed in $last.*, for `expect` to judge.
keep() {
    local code=0 start=$SECONDS
    "$@" >"$last.out" 2>"$last.err" </dev/null || code=$?
    echo "$code" >"$last.code"
    echo $((SECONDS - start)) >"$last.took"
}
call() { keep g "$@"; }
value() { python3 "$root/tests/expect.py" "$last" "$1"; }

report() { # NAME RESULT DETAIL
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$1"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n%s\n' "$1" "$3"
    fi
}
expect() { # NAME EXPRESSION, over the last call
    local detail code=0
    detail=$(value "$2") || code=$?
    report "$1" "$code" "$detail"
}
# refuse NAME STATUS REASON EXPRESSION: the last call ended with this error, every detail of it readable.
refuse() {
    expect "$1" "code != 0 and status == '$2' and details['ErrorInfo']['reason'] == '$3' \
and details['ErrorInfo']['domain'] == 'jobwire.v1' and ($4)"
}

submit_and_see() {
    call JobService/Submit '{"spec":{"kind":"echo","payload":{"json":{"hello":"world"}}},"wait":"10s"}'
    expect "Submit with wait shows the outcome" \
        "code == 0 and r['done'] and r['job']['state'] == 'STATE_SUCCEEDED' and r['job']['output']['json'] == {'hello': 'world'}"
    expect "Submit hands out a job id and a cursor" "r['job']['jobId'] and 0 < len(r['cursor']) <= 128"
}

# The job is cancelled before it is due: nothing is sent to example.org.
delayed_http() {
    local spec='{"spec":{"kind":"http","delay":"30s","payload":{"json":{"url":"https://example.org/"}},"retry":{"max_attempts":3}},"job_id":"health-1"}'
    call JobService/Submit "$spec"
    expect "Submit with a delay schedules the job" \
        "code == 0 and r['job']['jobId'] == 'health-1' and r['job']['state'] == 'STATE_SCHEDULED' and not r.get('done')"
    call JobService/Submit "$spec"
    expect "the same Submit again is the same job" "code == 0 and r['deduplicated'] and r['job']['jobId'] == 'health-1'"
    call JobService/Submit '{"spec":{"kind":"echo"},"job_id":"health-1"}'
    refuse "another spec under the same job_id is refused" AlreadyExists JOB_ID_IN_USE \
        "'health-1' in details['ResourceInfo']['resourceName']"
    call JobService/GetJob '{"job_id":"health-1"}'
    expect "GetJob shows what was asked for" \
        "code == 0 and r['job']['spec']['kind'] == 'http' and r['job']['spec']['retry']['maxAttempts'] == 3"
    call JobService/GetResult '{"job_id":"health-1"}'
    expect "GetResult without wait answers at once, not done" "code == 0 and not r.get('done') and 'retryAfter' in r"

    call JobService/GetResult '{"job_id":"health-1","wait":"45s"}' &
    local poll=$!
    sleep 1
    g JobService/CancelJob '{"job_id":"health-1","reason":"transcript"}' >/dev/null 2>&1 || true
    wait "$poll" || true
    expect "GetResult with wait answers as soon as the job is cancelled" \
        "code == 0 and took < 10 and r['done'] and r['job']['state'] == 'STATE_CANCELLED' and r['job']['error']['cause'] == 'CAUSE_CANCELLED'"
}

long_poll() {
    call JobService/Submit '{"spec":{"kind":"sleep","payload":{"json":{"duration":"2s"}}},"job_id":"nap-1"}'
    expect "Submit without wait does not wait" "code == 0 and not r.get('done')"
    call JobService/GetResult '{"job_id":"nap-1","wait":"45s"}'
    expect "GetResult with wait answers as soon as the job ends" \
        "code == 0 and took < 12 and r['done'] and r['job']['state'] == 'STATE_SUCCEEDED'"
}

watch_two() {
    local watch='{"filter":{"job_ids":["a","b"]},"until_all_done":true}'
    call JobService/WatchResults "$watch"
    refuse "until_all_done refuses a job it does not know" NotFound JOB_NOT_FOUND "'ResourceInfo' in details"

    g JobService/Submit '{"spec":{"kind":"sleep","payload":{"json":{"duration":"1s"}}},"job_id":"a"}' >/dev/null 2>&1 || true
    g JobService/Submit '{"spec":{"kind":"echo","delay":"1s","payload":{"text":"b"}},"job_id":"b"}' >/dev/null 2>&1 || true
    call JobService/WatchResults "$watch"
    expect "WatchResults until_all_done ends with 0" "code == 0"
    expect "WatchResults sends each outcome once" \
        "sorted(m['finished']['jobId'] for m in all if 'finished' in m) == ['a', 'b']"
    expect "WatchResults begins with a checkpoint" "'checkpoint' in all[0]"
    expect "every durable message has a cursor" "[m['cursor'] for m in all if 'finished' in m or 'checkpoint' in m]"
    call JobService/WatchResults "$watch"
    expect "WatchResults over final jobs ends at once" "code == 0 and len([m for m in all if 'finished' in m]) == 2"
}

mail() { # TENANT
    call JobService/Submit '{"spec":{"queue":"mail","kind":"echo","labels":{"tenant":"'"$1"'"},"payload":{"json":"'"$1"'"}},"wait":"10s"}'
}

watch_from_cursor() {
    mail acme
    local cursor watcher tries
    cursor=$(value "r['cursor']") || cursor=''
    background keep g JobService/WatchResults \
        '{"filter":{"queues":["mail"],"labels":{"tenant":"acme"}},"after_cursor":"'"$cursor"'","on_gap":"ON_GAP_CONTINUE"}'
    watcher=$!
    last=$work/other
    mail globex
    mail acme
    last=$work/call
    for ((tries = 0; tries < 100; tries++)); do
        [ "$(grep -c '"finished"' "$last.out" 2>/dev/null)" != 2 ] || break
        sleep 0.1
    done
    # One that should not come has the time to come.
    sleep 0.5
    end_group "$watcher"
    echo 0 | tee "$last.took" >"$last.code"
    expect "WatchResults after the cursor of a Submit misses nothing" \
        "[m['finished']['output']['json'] for m in all if 'finished' in m] == ['acme', 'acme']"
}

batch() {
    call JobService/BatchSubmit '{"requests":[{"spec":{"kind":"echo","payload":{"json":1}}},{"spec":{"kind":"echo","payload":{"text":"two"}}}]}'
    expect "BatchSubmit answers for every item" "code == 0 and len(r['responses']) == 2 and r['cursor']"
    local first second
    first=$(value "r['responses'][0]['job']['jobId']") || first=''
    second=$(value "r['responses'][1]['job']['jobId']") || second=''
    call JobService/GetResult '{"job_id":"'"$first"'","wait":"10s"}'
    expect "a JSON payload comes back as JSON" "r['done'] and r['job']['output']['json'] == 1"
    call JobService/GetResult '{"job_id":"'"$second"'","wait":"10s"}'
    expect "a text payload comes back as text" "r['done'] and r['job']['output']['text'] == 'two'"
}

list_failed() {
    # Refused by the address rule before anything is sent.
    call JobService/Submit '{"spec":{"queue":"mail","kind":"http","payload":{"json":{"url":"http://127.0.0.1:9/"}},"retry":{"max_attempts":1}},"job_id":"failed-1","wait":"10s"}'
    expect "a job that fails is no failed call" \
        "code == 0 and r['done'] and r['job']['state'] == 'STATE_FAILED' and r['job']['error']['code'] == 'http.blocked'"
    call JobService/ListJobs '{"filter":{"states":["STATE_FAILED"],"queues":["mail"]},"page_size":20}'
    expect "ListJobs finds it, and only it" "code == 0 and [j['jobId'] for j in r['jobs']] == ['failed-1'] and r['cursor']"
}

info_and_delete() {
    call JobService/GetServerInfo '{}'
    expect "GetServerInfo names version and limits" "code == 0 and r['version'] and r['limits']['maxWait'] == '45s' and r['logId']"
    call JobService/DeleteJob '{"job_id":"nap-1","etag":"stale"}'
    refuse "DeleteJob with an old etag is refused" Aborted ETAG_MISMATCH "True"
    call JobService/DeleteJob '{"job_id":"nap-1"}'
    expect "DeleteJob removes a final job" "code == 0"
}

work_by_hand() {
    call JobService/Submit '{"spec":{"kind":"email.send","payload":{"json":{"to":"a@example.org"}}},"job_id":"mail-1"}'
    expect "a job of a kind that the server has no handler for is accepted" "code == 0 and r['job']['state'] == 'STATE_QUEUED'"
    local ask='{"worker_id":"me","kinds":["email.send"],"wait":"20s","payload_format":"PAYLOAD_FORMAT_READABLE","request_id":"r1"}'
    call WorkerService/LeaseJobs "$ask"
    expect "LeaseJobs hands out the job with its input" \
        "code == 0 and took < 10 and r['leases'][0]['job']['jobId'] == 'mail-1' and r['leases'][0]['job']['spec']['payload']['json'] == {'to': 'a@example.org'}"
    local lease
    lease=$(value "r['leases'][0]['leaseId']") || lease=''
    call WorkerService/LeaseJobs "$ask"
    expect "the same LeaseJobs again gives the same lease" "code == 0 and [l['leaseId'] for l in r['leases']] == ['$lease']"
    call WorkerService/RenewLeases \
        '{"worker_id":"me","lease_ids":["'"$lease"'"],"progress":[{"lease_id":"'"$lease"'","progress":{"fraction":0.5,"note":"half"}}]}'
    expect "RenewLeases prolongs it" "code == 0 and 'lostLeaseIds' not in r and r['leaseExpireTime']"
    call JobService/GetJob '{"job_id":"mail-1"}'
    expect "GetJob shows the progress" "r['job']['state'] == 'STATE_RUNNING' and r['job']['progress']['note'] == 'half' and r['job']['workerId'] == 'me'"
    local finish='{"finish":{"lease_id":"'"$lease"'","succeeded":{"json":{"message_id":"42"}}}}'
    call WorkerService/FinishJob "$finish"
    expect "FinishJob ends the job" \
        "code == 0 and r['job']['state'] == 'STATE_SUCCEEDED' and r['job']['output']['json'] == {'message_id': '42'}"
    call WorkerService/FinishJob "$finish"
    expect "the same FinishJob again is answered alike" "code == 0 and r['job']['state'] == 'STATE_SUCCEEDED'"
    call WorkerService/FinishJob '{"finish":{"lease_id":"'"$lease"'","succeeded":{"json":"another"}}}'
    refuse "a lease that is over" FailedPrecondition LEASE_LOST "'PreconditionFailure' in details"
    call WorkerService/RenewLeases '{"worker_id":"me","lease_ids":["nonsense"]}'
    expect "RenewLeases tells of leases that nobody holds" "code == 0 and r['lostLeaseIds'] == ['nonsense']"
    call WorkerService/LeaseJobs '{"worker_id":"me"}'
    refuse "LeaseJobs without kinds" InvalidArgument INVALID_FIELD \
        "details['BadRequest']['fieldViolations'][0]['field'] == 'kinds'"
    call WorkerService/LeaseJobs '{"worker_id":"me","kinds":["email.send"],"wait":"0.5s"}'
    expect "LeaseJobs without jobs answers with none" "code == 0 and 'leases' not in r"
}

work_by_stream() {
    g JobService/Submit '{"spec":{"kind":"email.send"},"job_id":"mail-2"}' >/dev/null 2>&1 || true
    # grpcurl closes its side after the last message: what was leased by then is there, and the end is orderly.
    call WorkerService/Work '{"hello":{"worker_id":"me","kinds":["email.send"]}} {"heartbeat":{"lease_ids":["nonsense"]}}'
    expect "Work begins with a welcome" "code == 0 and all[0]['welcome']['heartbeatInterval'] == '5s' and all[0]['welcome']['leaseDuration'] == '30s'"
    expect "Work answers a heartbeat" "[m['heartbeatAck']['lostLeaseIds'] for m in all if 'heartbeatAck' in m] == [['nonsense']]"
    call WorkerService/Work '{"heartbeat":{}}'
    refuse "Work begins with a hello" InvalidArgument INVALID_FIELD \
        "details['BadRequest']['fieldViolations'][0]['field'] == 'hello'"
}

stream() { grpcurl -plaintext -d @ "$ADDR" jobwire.v1.WorkerService/Work <"$work/said"; }
# heard EXPRESSION: waits until it is true of what the stream has brought so far.
heard() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        ! value "$1" >/dev/null || return 0
        sleep 0.1
    done
}

# A worker that answers what it hears: the side of the caller stays open until the result is acknowledged.
finish_by_stream() {
    mkfifo "$work/said"
    echo 0 | tee "$last.took" >"$last.code"
    : >"$last.out"
    background keep stream
    local worker=$! lease
    # Opened for both, so that this does not wait for a grpcurl that never came.
    exec 3<>"$work/said"
    echo '{"hello":{"worker_id":"me","kinds":["email.send"],"max_in_flight":1,"payload_format":"PAYLOAD_FORMAT_READABLE"}}' >&3
    heard "any('lease' in m for m in all)"
    lease=$(value "[m['lease']['leaseId'] for m in all if 'lease' in m][0]") || lease=''
    echo '{"heartbeat":{"lease_ids":["'"$lease"'"],"last_lease_sequence":1}}' >&3
    echo '{"finish":{"lease_id":"'"$lease"'","succeeded":{"json":{"message_id":"43"}}}}' >&3
    heard "any('finishAck' in m for m in all)"
    exec 3>&-
    wait "$worker" || true
    expect "Work leases the job, once" \
        "[(m['lease']['job']['jobId'], m['lease']['sequence']) for m in all if 'lease' in m] == [('mail-2', '1')]"
    expect "Work acknowledges its result, and ends in order" \
        "code == 0 and [m['finishAck'] for m in all if 'finishAck' in m] == [{'leaseId': '$lease', 'accepted': True}]"
    call JobService/GetResult '{"job_id":"mail-2"}'
    expect "the result of the stream is the job's" \
        "r['done'] and r['job']['state'] == 'STATE_SUCCEEDED' and r['job']['output']['json'] == {'message_id': '43'}"
}

errors() {
    call JobService/GetResult '{"job_id":"nobody"}'
    refuse "an unknown job: ResourceInfo and ErrorInfo can be read" NotFound JOB_NOT_FOUND \
        "'nobody' in details['ResourceInfo']['resourceName']"
    call JobService/GetJob '{"job_id":"nap-1"}'
    refuse "a deleted job is not found" NotFound JOB_NOT_FOUND "'ResourceInfo' in details"
    call JobService/Submit '{"spec":{"kind":"echo","priority":101}}'
    refuse "a bad priority: BadRequest names the field" InvalidArgument INVALID_FIELD \
        "details['BadRequest']['fieldViolations'][0]['field'] == 'spec.priority'"
    call JobService/Submit '{"spec":{}}'
    refuse "no kind: BadRequest names the field" InvalidArgument INVALID_FIELD \
        "details['BadRequest']['fieldViolations'][0]['field'] == 'spec.kind'"
    call JobService/Submit '{"spec":{"kind":"echo","payload":{"json":90071992547409930}}}'
    refuse "an integer that doubles have damaged" InvalidArgument JSON_UNSAFE "'BadRequest' in details"
    call JobService/WatchResults '{"after_cursor":"nonsense"}'
    refuse "a cursor that is none" InvalidArgument BAD_CURSOR "'BadRequest' in details"
    call JobService/ListJobs '{"page_token":"nonsense"}'
    refuse "a page token that is none" InvalidArgument BAD_PAGE_TOKEN "'BadRequest' in details"
    call JobService/Submit '{"spec":{"kind":"echo"},"request_id":"once"}'
    call JobService/Submit '{"spec":{"kind":"sleep","payload":{"json":{"duration":"0s"}}},"request_id":"once"}'
    refuse "a request_id with another spec" AlreadyExists REQUEST_ID_REUSED "'ResourceInfo' in details"
    call JobService/RetryJob '{"job_id":"a"}'
    refuse "a retry in the wrong state" FailedPrecondition JOB_STATE "'PreconditionFailure' in details"
}

health() {
    keep grpcurl -plaintext -d '{"service":""}' "$ADDR" grpc.health.v1.Health/Check
    expect "health of the server" "code == 0 and r['status'] == 'SERVING'"
    keep grpcurl -plaintext -d '{"service":"jobwire.v1.JobService"}' "$ADDR" grpc.health.v1.Health/Check
    expect "health of JobService" "code == 0 and r['status'] == 'SERVING'"
    keep grpcurl -plaintext -d '{"service":"jobwire.v1.WorkerService"}' "$ADDR" grpc.health.v1.Health/Check
    expect "health of WorkerService" "code == 0 and r['status'] == 'SERVING'"
    keep grpcurl -plaintext -d '{"service":"nobody"}' "$ADDR" grpc.health.v1.Health/Check
    expect "health of an unknown service" "code != 0 and status == 'NotFound'"
}

# grpcurl picks v1 by itself and v1alpha only where v1 is missing, so each is called as any other service.
reflection() {
    keep grpcurl -plaintext "$ADDR" list
    expect "grpcurl list" "code == 0 and {'jobwire.v1.JobService', 'jobwire.v1.WorkerService', 'grpc.health.v1.Health'} <= set(text.split())"
    keep grpcurl -plaintext "$ADDR" describe jobwire.v1.JobService
    expect "grpcurl describe" "code == 0 and 'rpc Submit' in text"
    keep grpcurl -plaintext "$ADDR" describe google.rpc.BadRequest
    expect "reflection knows the error details" "code == 0 and 'field_violations' in text"
    local version
    for version in v1 v1alpha; do
        cat >"$work/reflection.proto" <<PROTO
syntax = "proto3";
package grpc.reflection.$version;
service ServerReflection { rpc ServerReflectionInfo(stream Request) returns (stream Response); }
message Request { string list_services = 7; }
message Response { Services list_services_response = 6; }
message Services { repeated Service service = 1; }
message Service { string name = 1; }
PROTO
        keep grpcurl -plaintext -import-path "$work" -proto reflection.proto -d '{"list_services":"*"}' "$ADDR" \
            "grpc.reflection.$version.ServerReflection/ServerReflectionInfo"
        expect "reflection $version lists the services" \
            "code == 0 and 'jobwire.v1.JobService' in [s['name'] for s in r['listServicesResponse']['service']]"
    done
}

stop() {
    local code=0 start=$SECONDS
    stop_server || code=$?
    [ "$code" -ne 0 ] || [ $((SECONDS - start)) -lt 15 ] || code=1
    report "SIGTERM ends the server with 0, and soon" "$code" "  exit code $code after $((SECONDS - start)) s"
}

start_server 180
for part in submit_and_see delayed_http long_poll watch_two watch_from_cursor batch list_failed info_and_delete \
    work_by_hand work_by_stream finish_by_stream errors \
    health reflection stop; do
    "$part"
done
[ "$failed" -eq 0 ] || show_log
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
