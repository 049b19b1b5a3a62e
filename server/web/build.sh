#!/usr/bin/env bash
# Makes the page from its source: server/web/build.sh --write into dist, which the program embeds; without, into target, to be
# compared with dist. Packages come from npm, as package-lock.json names them with their sums. Needs Node 20.19 or later; exits with
# 3 where there is none.
set -euo pipefail
cd "$(dirname "$0")"
node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null ||
  { echo "the page is built with Node 20.19 or later" >&2; exit 3; }
made=../../target/page-build
mkdir -p "$made"
rm -rf "$made/src" "$made/dist"
cp -r package.json package-lock.json .npmrc tsconfig.json vite.config.ts index.html src "$made"
cd "$made"
npm ci --loglevel=error --no-progress >/dev/null
npm run --silent build >build.log 2>&1 || { cat build.log >&2; exit 1; }
if [ "${1:-}" = --write ]; then
  cp dist/* ../../server/web/dist/
else
  diff -rq dist ../../server/web/dist || { echo "server/web/dist is not what its source makes: server/web/build.sh --write" >&2; exit 1; }
fi
