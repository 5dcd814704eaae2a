#!/usr/bin/env bash
# Tests the client libraries: is the generated code that of the contract, do they pass their own tests, and do they
# behave alike against the real server?
#
# usage: clients/test.sh TOOLS BINARY RUST_DRIVER
set -euo pipefail

cd "$(dirname "$0")/.."
tools=$(cd "$1" && pwd) binary=$(realpath -m "$2") rust=$(realpath -m "$3")
python=$tools/venv/bin/python

die() {
    printf 'clients: %s\n' "$*" >&2
    exit 1
}
# Before the minutes that the rest takes.
[ -x "$binary" ] || die "no server at $binary: run \`make build\`"
[ -x "$rust" ] || die "no driver of the Rust library at $rust: run \`cargo build --example conformance\`"
command -v mvn >/dev/null || die "Maven is missing: run \`make tools\`, or see https://maven.apache.org"

step() { printf '\n== %s\n' "$*"; }

step generated code
tools/generate-clients.sh "$tools" --check

step Python
rm -rf clients/python/build # Setuptools packs what an earlier build left there.
"$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
    ./clients/python
(cd clients/python && "$tools/venv/bin/mypy" && "$python" -m pytest -q tests)

step TypeScript
(cd clients/typescript && npm test --silent)

step Go
cd clients/go
[ -z "$(gofmt -l .)" ] || { gofmt -d .; exit 1; }
go vet ./...
go test ./...
go build -o "$tools/bin/go-driver" ./internal/conformance
cd - >/dev/null

step conformance
"$python" clients/conformance/run.py --server "$binary" --go "$tools/bin/go-driver" --rust "$rust"

step browser
"$python" clients/conformance/browser.py "$binary"

step ghz
"$python" clients/conformance/tool.py "$binary" "[OK]   2000 responses" "$tools/bin/ghz" --insecure -n 2000 -c 50 \
    --call jobwire.v1.JobService/Submit \
    -d '{"spec": {"kind": "echo", "payload": {"json": {"number": "{{.RequestNumber}}"}}}, "request_id": "{{.UUID}}"}' \
    '{address}'

step Java
"$python" clients/conformance/tool.py "$binary" "refused JOB_NOT_FOUND" \
    mvn --batch-mode --quiet --file clients/java/pom.xml compile exec:java '-Dexec.args={address}'
