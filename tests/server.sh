# shellcheck shell=bash
# Sourced by the scripts beside it: a server on a free port with an empty data directory, and its end.
#
# JOBWIRE_BIN names the binary; unset means the release build.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
binary=${JOBWIRE_BIN:-$target/release/jobwire}
PATH=$target/tools/bin:$PATH
# A variable that is no setting is refused by the server, and one that is would change what is tested.
unset "${!JOBWIRE_@}"

work=$(mktemp -d)
server='' watchdog=''

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# A job of its own process group, so that its children can be ended with it. Its id is in $!.
background() {
    set -m
    "$@" &
    set +m
}

end_group() {
    kill -KILL -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean() {
    [ -z "$watchdog" ] || end_group "$watchdog"
    [ -z "$server" ] || end_group "$server"
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

serve() { exec "$binary" serve --listen 127.0.0.1:0 --data "$work/data" </dev/null >"$work/stdout" 2>"$work/stderr"; }

# Nothing that waits for the server can hang for longer than this.
watch_over() {
    exec >/dev/null 2>&1 </dev/null
    sleep "$1"
    echo "after $1 s the server was killed by its test" >>"$work/stderr"
    kill -KILL "$server"
}

# start_server SECONDS: sets ADDR. The server is killed after SECONDS.
start_server() {
    [ -x "$binary" ] || die "no binary at $binary: run \`make build\`, or name one in JOBWIRE_BIN"
    background serve
    server=$!
    background watch_over "$1"
    watchdog=$!
    local line tries
    for ((tries = 0; tries < 300; tries++)); do
        if IFS= read -r line 2>/dev/null <"$work/stdout"; then
            [[ $line =~ ^listening\ on\ (127\.0\.0\.1:[0-9]+)$ ]] || die "first line of the server: $line"
            # shellcheck disable=SC2034 # For the script that sources this.
            ADDR=${BASH_REMATCH[1]}
            return
        fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    show_log
    die "the server did not say that it is listening"
}

# Asks the server to stop. Returns its exit code.
stop_server() {
    local code=0
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || code=$?
    server=''
    return "$code"
}

show_log() {
    echo "---- the server's log, last lines"
    tail -n 40 "$work/stderr" 2>/dev/null || true
}
