#!/usr/bin/env bash
# A PostgreSQL for tests: a cluster of its own in a temporary directory, on a free port of the loopback. It prints its
# URL on a line of its own, serves until its stdin ends, and leaves nothing behind. What is not installed yet comes
# from Debian's packages, after saying so; elsewhere it is named and this fails.
#
# usage: tools/postgres.sh install   # only what is missing
#        tools/postgres.sh serve     # stop it with Ctrl-D, or by closing the pipe
#
# PGBIN names the directory of another version's programs.
set -euo pipefail

say() { printf 'postgres: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Debian keeps the servers of all versions out of the way.
find_server() {
    local dir
    for dir in "${PGBIN:-}" "$(pg_config --bindir 2>/dev/null || true)" \
        $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -Vr); do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            bin=$dir
            return
        fi
    done
    return 1
}

install() {
    find_server && return
    if ! [ -f /etc/debian_version ] || ! command -v apt-get >/dev/null; then
        die "missing: PostgreSQL 14 or later, https://www.postgresql.org; PGBIN names the directory of initdb"
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "as root, run: apt-get install postgresql"
        root=(sudo)
    fi
    say "installing with apt-get: postgresql"
    local apt=(${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get)
    {
        "${apt[@]}" update -q
        # First what makes clusters, and then told not to: nobody asked for a server that runs all the time.
        "${apt[@]}" install -y -q --no-install-recommends postgresql-common
        ${root[@]+"${root[@]}"} sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' \
            /etc/postgresql-common/createcluster.conf
        "${apt[@]}" install -y -q --no-install-recommends postgresql
    } >&2
    find_server || die "still missing after apt-get install: initdb"
}

# Runs a command as somebody who is not root: initdb refuses root.
as_owner() {
    if [ "$(id -u)" -eq 0 ]; then
        runuser -u "$owner" -- "$@"
    else
        "$@"
    fi
}

stop() {
    [ -s "$dir/data/postmaster.pid" ] && as_owner "$bin/pg_ctl" stop -D "$dir/data" -m immediate -s || true
    rm -rf "$dir"
}

# The server takes the port itself: two at once would both find the same one free.
start() {
    local try
    for try in {1..20}; do
        port=$((20000 + RANDOM % 12000))
        as_owner "$bin/pg_ctl" start -D "$dir/data" -l "$dir/log" -s -w -o "-p $port" >/dev/null 2>&1 && return
    done
    cat "$dir/log" >&2
    die "it does not start"
}

serve() {
    owner=nobody
    getent passwd postgres >/dev/null && owner=postgres
    # In memory where that is possible: syncs of the disk are not what is tested.
    local base=${TMPDIR:-/tmp}
    [ -w /dev/shm ] && base=/dev/shm
    dir=$(mktemp -d "$base/jobwire-postgres-XXXXXX")
    trap stop EXIT
    trap 'exit 130' INT TERM HUP
    [ "$(id -u)" -ne 0 ] || chown "$owner" "$dir"
    cd "$dir"
    as_owner "$bin/initdb" -D data -U jobwire -A trust -E UTF8 --locale=C -k >"$dir/initdb.log" 2>&1 || {
        cat "$dir/initdb.log" >&2
        die "initdb failed"
    }
    cat >>data/postgresql.conf <<-'CONF'
		listen_addresses = '127.0.0.1'
		unix_socket_directories = ''
		max_connections = 300
		# Many short-lived schemas, and time enough only for tests.
		autovacuum_naptime = 5s
		log_min_messages = warning
	CONF
    start
    printf 'postgres://jobwire@127.0.0.1:%s/postgres\n' "$port"
    cat >/dev/null
}

case ${1:-} in
install) install ;;
serve)
    install
    serve
    ;;
*) die "usage: $0 install | serve" ;;
esac
