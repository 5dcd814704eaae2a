#!/usr/bin/env bash
# Measures jobwire and its peers in one run. `--help` lists the options.
set -euo pipefail

cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)

benches/peers/install.sh "$target/peers"
[ -n "${JOBWIRE_BIN:-}" ] || cargo build --quiet --locked --release
binary=${JOBWIRE_BIN:-$target/release/jobwire}
# A server would take it for a setting.
unset JOBWIRE_BIN
export PEERS_TOOLS=$target/peers PYTHONPATH=$target/peers/python PYTHONDONTWRITEBYTECODE=1
PATH=$PEERS_TOOLS/bin:/usr/sbin:$PATH exec python3 benches/peers/run.py \
    --data "$PEERS_TOOLS/data" --jobwire "$binary" "$@"
