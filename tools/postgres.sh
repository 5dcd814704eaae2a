#!/usr/bin/env bash
# A PostgreSQL for tests: a cluster of its own in a temporary directory, on a free port of the loopback. It prints its
# URL on a line of its own, serves until its stdin ends, and leaves nothing behind. What is not installed yet comes
# from Debian's packages, after saying so; elsewhere it is named and this fails.
#
# usage: tools/postgres.sh install                          # only what is missing
#        tools/postgres.sh serve [--standby sync|async] [--disks]     # stop it with Ctrl-D, or by closing the pipe
#
# With a standby the URL names both hosts, and with `sync` every commit waits for it. With `--disks`, which needs root, each
# server has a file system of its own, in memory. While it serves it takes these commands, one a line, and answers each with
# `ok` or `error: …` once it is done:
#
#   kill      the primary and all its processes at once, as by a crash
#   stop      the primary in an orderly way, which ends all sessions
#   start     the primary again, after `kill` or `stop`
#   restart   `stop` and `start`
#   pause     what was committed before reaches the standby, nothing that is committed from here on does
#   resume    the standby follows again
#   promote   the standby becomes the primary, whether the old one still runs or not. It waits for no standby
#   revive    the old primary runs again, as one that has not heard of the new one
#   rejoin    the old primary is thrown away, and a new standby of the new one stands in its place
#   fill      the primary's disk is full
#   clear     there is room on it again, and the primary runs again if it has given up
#
# PGBIN names the directory of another version's programs.
set -euo pipefail

# Bytes that are free on a disk that is not full.
DISK=$((4 << 30))

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

# The two servers are directories, 1 and 2. At first 1 is the primary.
ctl() {
    as_owner "$bin/pg_ctl" -D "$dir/$1/data" -s -w "${@:2}" </dev/null
}

launch() {
    ctl "$1" start -l "$dir/$1/log" -o "-p ${port[$1]}" >/dev/null
}

# The server takes the port itself: two at once would both find the same one free.
find_port() {
    local try
    for try in {1..20}; do
        port[$1]=$((20000 + RANDOM % 12000))
        launch "$1" 2>/dev/null && return
    done
    cat "$dir/$1/log" >&2
    say "it does not start"
    return 1
}

ask() {
    "$bin/psql" -XAtq -h 127.0.0.1 -p "${port[$1]}" -U jobwire -d postgres -c "$2" </dev/null
}

# Waits until a server answers `t`.
until_true() {
    for _ in {1..600}; do
        [ "$(ask "$1" "$2" 2>/dev/null)" = t ] && return
        sleep 0.05
    done
    say "in vain: $2"
    return 1
}

# What only this server is told: it reads it when it starts, or at once.
tell() {
    printf '%s\n' "${@:2}" >"$dir/$1/data/own.conf"
    if [ -s "$dir/$1/data/postmaster.pid" ]; then
        ctl "$1" reload
    fi
}

end() {
    local server
    for server in 1 2; do
        if [ -s "$dir/$server/data/postmaster.pid" ]; then
            ctl "$server" stop -m immediate || true
        fi
        [ -z "$disks" ] || umount "$dir/$server" 2>/dev/null || true
    done
    rm -rf "$dir"
}

# The standby connects to the primary, and with `sync` commits wait for it from then on.
follow() {
    tell "$standby" "primary_conninfo = 'host=127.0.0.1 port=${port[$primary]} user=jobwire application_name=standby'" &&
        until_true "$primary" "select exists (select from pg_stat_replication where state = 'streaming')" || return
    if [ "$mode" = sync ]; then
        tell "$primary" "synchronous_standby_names = 'standby'" &&
            until_true "$primary" "select exists (select from pg_stat_replication where sync_state = 'sync')"
    fi
}

add_standby() {
    rm -rf "${dir:?}/$standby/data"
    as_owner "$bin/pg_basebackup" -h 127.0.0.1 -p "${port[$primary]}" -U jobwire -D "$dir/$standby/data" \
        -c fast >&2 </dev/null &&
        as_owner touch "$dir/$standby/data/standby.signal" &&
        tell "$standby" '' || return
    if [ -n "${port[$standby]:-}" ]; then launch "$standby"; else find_port "$standby"; fi && follow
}

# Killed, and perhaps not noted by its parent yet.
is_dead() {
    ! kill -0 "$1" 2>/dev/null || grep -qs ') Z ' "/proc/$1/stat"
}

kill_primary() {
    local file=$dir/$primary/data/postmaster.pid pid children memory process
    [ -s "$file" ] || { say "it does not run" && return 1; }
    pid=$(sed -n 1p "$file")
    memory=$(sed -n 7p "$file")
    # Elsewhere than on Linux they notice by themselves.
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true)
    # None may run on while others are dead already: a commit that waits for the standby gives up when it finds the postmaster
    # gone, and for a moment others see what the standby does not have.
    # shellcheck disable=SC2086
    kill -STOP "$pid" $children || true
    # shellcheck disable=SC2086
    kill -KILL "$pid" $children || true
    for process in $pid $children; do
        until is_dead "$process"; do sleep 0.01; done
    done
    # What it would clean up itself when it starts again; perhaps it never does.
    ipcrm -m "${memory##* }" 2>/dev/null || true
    rm "$file"
}

pause() {
    local end
    end=$(ask "$primary" 'select pg_current_wal_lsn()') &&
        until_true "$standby" "select pg_last_wal_replay_lsn() >= '$end'" &&
        tell "$standby" '' &&
        until_true "$standby" 'select not exists (select from pg_stat_wal_receiver)'
}

promote() {
    tell "$standby" '' && ctl "$standby" promote || return
    local old=$primary
    primary=$standby
    standby=$old
}

rejoin() {
    if [ -s "$dir/$standby/data/postmaster.pid" ]; then
        ctl "$standby" stop -m immediate 2>/dev/null || true
    fi
    add_standby
}

# In bytes more than what is on it.
resize() {
    local used
    used=$(df --block-size=1 --output=used "$dir/$primary" | tail -1) &&
        mount -o "remount,size=$((used + $1))" "$dir/$primary"
}

# It may grow while it is looked at.
fill() {
    for _ in {1..100}; do
        resize 65536 2>/dev/null && return
    done
    resize 65536
}

clear() {
    resize "$DISK" || return
    # A server that cannot write its log ends, and finds no room to recover.
    for _ in {1..100}; do
        ctl "$primary" status >/dev/null || launch "$primary" 2>/dev/null || true
        [ "$(ask "$primary" 'select true' 2>/dev/null)" = t ] && return
        sleep 0.1
    done
    say "it does not recover: $(tail -5 "$dir/$primary/log")"
    return 1
}

obey() {
    case $1 in
    pause | resume | promote | revive | rejoin)
        [ -n "$mode" ] || { say "there is no standby: --standby" && return 1; }
        ;;
    fill | clear)
        [ -n "$disks" ] || { say "it has no disk of its own: --disks" && return 1; }
        ;;
    esac
    case $1 in
    kill) kill_primary ;;
    stop) ctl "$primary" stop -m fast ;;
    start) launch "$primary" ;;
    restart) ctl "$primary" stop -m fast && launch "$primary" ;;
    pause) pause ;;
    resume) follow ;;
    promote) promote ;;
    revive) launch "$standby" ;;
    rejoin) rejoin ;;
    fill) fill ;;
    clear) clear ;;
    *) say "no such command: $1" && return 1 ;;
    esac
}

serve() {
    mode= disks=
    while [ $# -gt 0 ]; do
        case "$1 ${2:-}" in
        '--standby sync' | '--standby async') mode=$2 && shift 2 ;;
        '--disks '*) disks=1 && shift ;;
        *) die "not known: $*" ;;
        esac
    done
    owner=nobody
    getent passwd postgres >/dev/null && owner=postgres
    # In memory where that is possible: syncs of the disk are not what is tested.
    local base=${TMPDIR:-/tmp} command server
    [ -w /dev/shm ] && base=/dev/shm
    dir=$(mktemp -d "$base/jobwire-postgres-XXXXXX")
    trap end EXIT
    trap 'exit 130' INT TERM HUP
    [ "$(id -u)" -ne 0 ] || chown "$owner" "$dir"
    cd "$dir"
    port=()
    primary=1 standby=2
    for server in 1 2; do
        as_owner mkdir "$server"
        [ -z "$disks" ] || mount -t tmpfs -o "size=$DISK,mode=0777" none "$server" || die "no file system can be mounted"
    done
    as_owner "$bin/initdb" -D 1/data -U jobwire -A trust -E UTF8 --locale=C -k >"$dir/initdb.log" 2>&1 || {
        cat "$dir/initdb.log" >&2
        die "initdb failed"
    }
    cat >>1/data/postgresql.conf <<-'CONF'
		listen_addresses = '127.0.0.1'
		unix_socket_directories = ''
		max_connections = 300
		# Many short-lived schemas, and time enough only for tests.
		autovacuum_naptime = 5s
		log_min_messages = warning
		# A standby that was held back finds what it has missed.
		wal_keep_size = 512MB
		# In files, which leave with the directory.
		dynamic_shared_memory_type = mmap
		include_if_exists = 'own.conf'
	CONF
    find_port 1 || exit 1
    if [ -n "$mode" ]; then
        add_standby || die "no standby"
    fi
    printf 'postgres://jobwire@127.0.0.1:%s%s/postgres\n' "${port[1]}" "${port[2]:+,127.0.0.1:${port[2]}}"
    while read -r command; do
        if obey "$command" 2>"$dir/said"; then
            echo ok
        else
            printf 'error: %s\n' "$(tr '\n' ' ' <"$dir/said")"
        fi
    done
}

case ${1:-} in
install) install ;;
serve)
    install
    serve "${@:2}"
    ;;
*) die "usage: $0 install | serve [--standby sync|async] [--disks]" ;;
esac
