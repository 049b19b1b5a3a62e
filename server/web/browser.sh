#!/usr/bin/env bash
# Fetches what gate 169 needs, into target/page: playwright-core, which drives Debian's Chromium, and axe-core, which looks for what
# keeps people out. Does nothing where they are there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v chromium >/dev/null || { echo "please install: chromium" >&2; exit 1; }
packages=(playwright-core@1.65.1 axe-core@4.14.1)
[ "$(cat target/page/packages 2>/dev/null)" = "${packages[*]}" ] && exit
echo "fetching ${packages[*]} from npm"
mkdir -p target/page
npm install --prefix target/page --no-save --no-fund --no-audit --silent "${packages[@]}"
echo "${packages[*]}" >target/page/packages
