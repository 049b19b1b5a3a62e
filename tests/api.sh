#!/usr/bin/env bash
# Gate 93: docs/api.txt lists what the crate `dollop` exports. tests/api.sh compares, tests/api.sh --write updates it.
#
# The listing comes from rustdoc's JSON, which is not stable yet. So the compiler runs as a nightly one; nothing that is
# built here is used for anything else.
set -euo pipefail
cd "$(dirname "$0")/.."

RUSTC_BOOTSTRAP=1 cargo rustdoc -p dollop --lib --quiet -- -Z unstable-options --output-format json --cap-lints allow
made=${CARGO_TARGET_DIR:-target}/doc/dollop.json
if [ "${1:-}" = --write ]; then
  python3 tests/api.py "$made" >docs/api.txt
else
  python3 tests/api.py "$made" | diff -u docs/api.txt - ||
    { echo "docs/api.txt is not what the crate exports: tests/api.sh --write" >&2; exit 1; }
fi
