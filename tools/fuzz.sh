#!/usr/bin/env bash
# Lets coverage lead the way through each target of src/fuzz.rs, and says how many inputs it tried. What was found
# stays in the corpus, so that the next run begins there. Stable Rust is enough: there is no unsafe code to sanitize.
#
# usage: tools/fuzz.sh SECONDS DIR [TARGET…]
set -euo pipefail

readonly cargo_fuzz=0.13.2
seconds=$1 dir=$2
shift 2

cd "$(dirname "$0")/.."
export PATH=$dir/tools/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $cargo_fuzz" ]; then
    cargo install --quiet --locked --root "$dir/tools" "cargo-fuzz@$cargo_fuzz"
fi
cargo fuzz build --sanitizer none --codegen-units 16 --target-dir "$dir/fuzz" any
any=$(ls "$dir"/fuzz/*/release/any)

if [ $# -eq 0 ]; then
    mapfile -t names < <("$any" 2>/dev/null)
    set -- "${names[@]}"
fi
for target in "$@"; do
    corpus=$dir/fuzz/corpus/$target
    log=$dir/fuzz/$target.log
    mkdir -p "$corpus"
    FUZZ_TARGET=$target FUZZ_SEEDS=$corpus "$any" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=256 \
        -max_len=8192 -print_final_stats=1 -artifact_prefix="$dir/fuzz/crash-$target-" "$corpus" >"$log" 2>&1 || {
        tail -n 40 "$log"
        printf 'fuzz: %s broke: add the input below %s/fuzz to its seeds\n' "$target" "$dir"
        exit 1
    }
    printf '%-18s %s inputs\n' "$target" "$(sed -nE 's/^stat::number_of_executed_units: *//p' "$log")"
done
