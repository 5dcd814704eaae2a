#!/usr/bin/env bash
# Brings the peers. Their servers come from apt, on Debian and its kin only and after saying so; none is left running.
# Libraries go below $1, as pinned here.
#
# usage: benches/peers/install.sh DIR
set -euo pipefail

cd "$(dirname "$0")"
mkdir -p "$1/bin" "$1/node"
dir=$(cd "$1" && pwd)
# Where Debian has the servers, also for those who are not root.
PATH=$PATH:/usr/sbin

say() { printf 'peers: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

look() {
    packages=()
    has beanstalkd || packages+=(beanstalkd)
    has gearmand || packages+=(gearman-job-server)
    has redis-server || packages+=(redis-server)
    has cc || packages+=(build-essential)
    has python3 || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    has node || packages+=(nodejs)
    has npm || packages+=(npm)
}

system() {
    look
    [ ${#packages[@]} -gt 0 ] || return 0
    if ! [ -f /etc/debian_version ] || ! has apt-get; then
        die "install what these Debian packages have, then run this again: ${packages[*]}"
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "as root, run: apt-get install ${packages[*]}"
        root=(sudo)
    fi
    say "installing with apt-get: ${packages[*]}"
    # Debian starts a service when it installs it, unless this program forbids that.
    local policy=/usr/sbin/policy-rc.d
    if ! [ -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | ${root[@]+"${root[@]}"} install -m 755 /dev/stdin $policy
        # shellcheck disable=SC2064 # Now, as long as the names are known.
        trap "${root[*]-} rm -f $policy" EXIT
    fi
    ${root[@]+"${root[@]}"} apt-get update -q >&2
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${packages[@]}" >&2
    look
    [ ${#packages[@]} -eq 0 ] || die "still missing after apt-get install: ${packages[*]}"
}

# The driver of the Go peers, and Faktory, which is written in Go.
go_programs() {
    has go || die "Go is missing: https://go.dev/dl has one that go/go.mod is content with"
    say "building the Go drivers and Faktory"
    (cd go && go build -o "$dir/bin/" . github.com/contribsys/faktory/cmd/faktory) ||
        die "the Go drivers do not build: go/go.mod says which Go they need, this is $(go version)"
}

python_packages() {
    cmp -s python/requirements.txt "$dir/python/requirements.txt" && return
    say "installing Celery and aiohttp"
    rm -rf "$dir/python"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --target "$dir/python" -r python/requirements.txt
    cp python/requirements.txt "$dir/python/"
}

node_packages() {
    cp node/bullmq.mjs "$dir/node/"
    cmp -s node/package-lock.json "$dir/node/package-lock.json" && [ -d "$dir/node/node_modules/bullmq" ] && return
    say "installing BullMQ"
    cp node/package.json node/package-lock.json "$dir/node/"
    # Not `npm ci`: it insists on the optional builds for every system.
    (cd "$dir/node" && npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error >&2) || {
        rm -f "$dir/node/package-lock.json"
        die "npm could not install BullMQ"
    }
}

system
../../tools/postgres.sh install
go_programs
python_packages
node_packages
