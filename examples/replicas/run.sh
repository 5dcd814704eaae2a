#!/usr/bin/env bash
# Several jobwire servers on one PostgreSQL, behind nginx. A server that ends is started again, as systemd would do.
# Ctrl-C ends all of it and leaves nothing behind.
#
# usage: examples/replicas/run.sh [--replicas 3] [--port 50051] [--store postgres://…]
#
#   --replicas  how many servers
#   --port      nginx listens there, on the loopback; the servers on the ports that follow
#   --store     the database; without it, one that tools/postgres.sh brings up, and that is gone afterwards
#
# JOBWIRE_BIN names the program; otherwise it is the release build, or the one in the PATH. JOBWIRE_* variables are settings
# of every server.
set -euo pipefail
# Each in a process group of its own: Ctrl-C reaches this script alone, which stops the others in order.
set -m

root=$(cd "$(dirname "$0")/../.." && pwd)
replicas=3 port=50051 store=

die() {
    printf 'replicas: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "not known, or without a value: $1"
    case $1 in
    --replicas) replicas=$2 ;;
    --port) port=$2 ;;
    --store) store=$2 ;;
    *) die "not known: $1" ;;
    esac
    shift 2
done

binary=${JOBWIRE_BIN:-$root/target/release/jobwire}
[ -x "$binary" ] || binary=$(command -v jobwire) || die "no program: cargo build --release, or JOBWIRE_BIN"
unset JOBWIRE_BIN
# Debian keeps it out of the way of those who are not root.
nginx=$(PATH=$PATH:/usr/sbin command -v nginx) || die "nginx is missing: apt-get install nginx, or https://nginx.org"

dir=$(mktemp -d "${TMPDIR:-/tmp}/jobwire-replicas-XXXXXX")
children=()

end() {
    trap '' INT TERM HUP
    # The balancer last: it serves whoever is told to go elsewhere.
    local child
    for child in "${children[@]:1}" "${children[@]:0:1}"; do
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    done
    if [ -n "${database:-}" ]; then
        exec 7>&-
        wait "$database" || true
    fi
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 130' INT TERM HUP

# Waits until a file says something.
await() {
    local file=$1 what=$2 process=$3
    until grep -qs "$what" "$file"; do
        kill -0 "$process" 2>/dev/null || {
            cat "$file" "${file%.out}.log" >&2 2>/dev/null || true
            die "$(basename "${file%.out}") does not start"
        }
        sleep 0.05
    done
}

if [ -z "$store" ]; then
    # It ends with its input.
    mkfifo "$dir/database.in"
    "$root/tools/postgres.sh" serve <"$dir/database.in" >"$dir/database.out" &
    database=$!
    exec 7>"$dir/database.in"
    await "$dir/database.out" '^postgres://' "$database"
    store=$(head -n 1 "$dir/database.out")
    printf 'database: %s\n' "$store"
fi

# One server, again and again.
serve() {
    local number=$1 address=127.0.0.1:$((port + $1)) server=
    trap 'trap "" TERM; kill -TERM $server 2>/dev/null; wait $server; exit' TERM
    while :; do
        JOBWIRE_STORE=$store "$binary" serve --listen "$address" >>"$dir/replica-$number.out" 2>>"$dir/replica-$number.log" &
        server=$!
        printf 'replica %s: %s, process %s, log %s\n' "$number" "$address" "$server" "$dir/replica-$number.log"
        wait "$server" || true
        sleep 1
    done
}

# Calls go to one server after the other. One that cannot be reached is left out for a second, and what was not sent to
# it goes to the next; so does a call that was, if the contract says that a repeat does no harm. Others end with
# UNAVAILABLE, as those do that a server refuses because it stops: the client libraries repeat them.
cat >"$dir/nginx.conf" <<CONF
daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $dir/body; proxy_temp_path $dir/proxy; fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi; scgi_temp_path $dir/scgi;
    upstream jobwire {
$(for ((n = 1; n <= replicas; n++)); do echo "        server 127.0.0.1:$((port + n)) max_fails=1 fail_timeout=1s;"; done)
        keepalive 64;
    }
    server {
        listen 127.0.0.1:$port http2;
        # Otherwise a connection ends after a thousand calls.
        keepalive_requests 1000000;
        grpc_read_timeout 90s;
        grpc_send_timeout 90s;
        client_body_timeout 90s;
        client_max_body_size 0;
        grpc_next_upstream error timeout;
        location / {
            grpc_pass grpc://jobwire;
        }
        location ~ ^/jobwire\.v1\.(JobService/(Get|List|Watch|Cancel|Delete)|WorkerService/(Renew|Finish)) {
            grpc_pass grpc://jobwire;
            grpc_next_upstream error timeout non_idempotent;
        }
    }
}
CONF
"$nginx" -c "$dir/nginx.conf" -e "$dir/nginx.log" 7>&- &
children=($!)
for ((n = 1; n <= replicas; n++)); do
    serve "$n" 7>&- &
    children+=($!)
done
for ((n = 1; n <= replicas; n++)); do
    await "$dir/replica-$n.out" '^listening on' "${children[n]}"
done
kill -0 "${children[0]}" 2>/dev/null || die "nginx does not start: $(cat "$dir/nginx.log")"

server=
[ "$port" = 50051 ] || server=" --server 127.0.0.1:$port"
cat <<TEXT
ready: $replicas servers behind 127.0.0.1:$port

Try it from another terminal:
  jobwire watch --since 1h$server
  jobwire run echo --json '{"hello":"world"}'$server
  kill -9 a process from above: calls go to the others, and the watch goes on there; -TERM lets it finish first
Ctrl-C ends all of it.
TEXT
wait
