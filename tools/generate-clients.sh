#!/usr/bin/env bash
# Generates the messages and stubs of the client libraries from proto/. One compiler for all of them: the protoc that
# grpcio-tools brings along. What it writes is committed, so that `pip install`, `npm install` and `go get` need no
# compiler; `--check` fails where it differs from the contract.
#
# usage: tools/generate-clients.sh TOOLS [--check]
set -euo pipefail

cd "$(dirname "$0")/.."
mkdir -p "$1"
tools=$(cd "$1" && pwd)
root=$PWD

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

readonly go_module=github.com/jobwire/jobwire/clients/go
python=$tools/venv/bin/python
# google.rpc, the details of errors: Python and Go have packages of it.
rpc=$("$python" -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])')
mapfile -t protos < <(cd proto && find jobwire -name '*.proto' | sort)

mkdir -p "$out/python" "$out/typescript" "$out/go"
protoc() { "$python" -m grpc_tools.protoc -I"$root/proto" "$@"; }
protoc --python_out="$out/python" --pyi_out="$out/python" --grpc_python_out="$out/python" "${protos[@]}"
protoc -I"$rpc" --plugin="$root/clients/typescript/node_modules/.bin/protoc-gen-es" \
    --es_out="$out/typescript" --es_opt=target=ts,import_extension=js "${protos[@]}" google/rpc/error_details.proto
packages=()
for proto in "${protos[@]}"; do packages+=("M$proto=$go_module/jobwirev1"); done
options=$(IFS=,; echo "${packages[*]}"),module=$go_module
protoc --plugin="$tools/bin/protoc-gen-go" --plugin="$tools/bin/protoc-gen-go-grpc" \
    --go_out="$out/go" --go_opt="$options" --go-grpc_out="$out/go" --go-grpc_opt="$options" "${protos[@]}"

# The folders that hold nothing but generated code, and what belongs there.
place() {
    local fresh=$1 kept=$2
    if [ "${check:-}" ]; then
        diff -r --brief -x __pycache__ -x __init__.py "$fresh" "$kept" || {
            echo "$kept differs from proto/: run \`make clients\` and commit what it writes" >&2
            exit 1
        }
    else
        mkdir -p "$kept"
        find "$kept" -type f ! -name __init__.py -delete
        cp -R "$fresh/." "$kept/"
    fi
}
[ "${2:-}" != --check ] || check=1
place "$out/python/jobwire/v1" clients/python/src/jobwire/v1
place "$out/typescript" clients/typescript/src/gen
place "$out/go/jobwirev1" clients/go/jobwirev1
