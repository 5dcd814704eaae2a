#!/usr/bin/env bash
# Runs the ```sh blocks between `<!-- tour -->` and `<!-- /tour -->` of a Markdown file, all in one shell and in
# order, against a server that it starts. The first command that fails ends it. `jobwire` is in the PATH and finds
# the server; localhost:50051 in the text stands for its address.
#
# usage: tests/readme_tour.sh [FILE]
set -euo pipefail

# shellcheck source=tests/server.sh
source "$(dirname "$0")/server.sh"

file=${1:-$root/README.md}
[ -f "$file" ] || die "there is no $file to take the tour from"

# Every other line becomes an empty one: line numbers stay those of the file.
extract() {
    awk '
        /^<!-- tour -->$/ { tour = 1 }
        /^<!-- \/tour -->$/ { tour = 0 }
        block && /^```$/ { block = 0 }
        { print block ? $0 : "" }
        tour && /^```sh$/ { block = 1; blocks++ }
        END {
            if (tour || block) { print "the tour is not closed" > "/dev/stderr"; exit 1 }
            if (!blocks) { print "there is no ```sh block in the tour" > "/dev/stderr"; exit 1 }
        }' "$file"
}
extract >"$work/extracted" || die "$file: no tour that can be run"

start_server 300
sed -E "s/(localhost|127\.0\.0\.1):50051/$ADDR/g" "$work/extracted" >"$work/tour"
name=$(basename "$file")
cat >"$work/setup" <<SETUP
unset BASH_ENV
set -euo pipefail
PS4='$name:\$LINENO + '
set -x
SETUP

cd "$root"
export JOBWIRE_SERVER=$ADDR
PATH=$(cd "$(dirname "$binary")" && pwd):$PATH
code=0
BASH_ENV=$work/setup bash "$work/tour" </dev/null || code=$?
if [ "$code" -ne 0 ]; then
    echo "tour of $name: the last command above FAILED with exit code $code" >&2
    show_log
    exit 1
fi
echo "tour of $name: every command passed"
