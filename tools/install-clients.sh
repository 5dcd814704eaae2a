#!/usr/bin/env bash
# Brings what generates and tests the client libraries, below $1: a Python environment, two plugins of protoc, and ghz.
# The packages of TypeScript go where Node looks for them.
#
# usage: tools/install-clients.sh DIR
set -euo pipefail

readonly protoc_gen_go=v1.36.12
readonly protoc_gen_go_grpc=v1.6.2
readonly ghz=v0.93.0 # The newest that is a Go module.

cd "$(dirname "$0")/.."
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)

say() { printf 'clients: %s\n' "$*"; }
die() {
    printf 'clients: %s\n' "$*" >&2
    exit 1
}
# at_least WANTED FOUND
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

python() {
    cmp -s clients/requirements.txt "$dir/venv/requirements.txt" && return
    at_least 3.11 "$(python3 -c 'import platform; print(platform.python_version())')" || die "Python 3.11 is the floor"
    say "installing Python packages into $dir/venv"
    rm -rf "$dir/venv"
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet --disable-pip-version-check -r clients/requirements.txt
    cp clients/requirements.txt "$dir/venv/"
}

typescript() {
    cmp -s clients/typescript/package-lock.json clients/typescript/node_modules/.lock && return
    at_least v20 "$(node --version)" || die "Node.js 20 is the floor"
    say "installing the packages of clients/typescript"
    # No package needs an install script.
    (cd clients/typescript && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp clients/typescript/package-lock.json clients/typescript/node_modules/.lock
}

tool() {
    [[ "$(go version -m "$dir/bin/${1##*/}" 2>/dev/null)" == *"$1"*"$2"* ]] && return
    say "building ${1##*/} $2 into $dir/bin"
    GOBIN=$dir/bin go install "$1@$2"
}

golang() {
    # A Go since 1.21 fetches the one that a module asks for, where GOTOOLCHAIN allows it.
    local floor
    floor=$(sed -n 's/^go //p' clients/go/go.mod)
    go -C clients/go version >/dev/null || die "Go $floor is the floor, or 1.21 that may fetch it"
    tool google.golang.org/protobuf/cmd/protoc-gen-go "$protoc_gen_go"
    tool google.golang.org/grpc/cmd/protoc-gen-go-grpc "$protoc_gen_go_grpc"
    tool github.com/bojand/ghz/cmd/ghz "$ghz"
}

python
typescript
golang
