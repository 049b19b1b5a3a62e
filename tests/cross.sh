#!/usr/bin/env bash
# Type-checks the library and its C interface for the systems that apps run on, with and without the GPU's kernels, and
# with Kotlin's entry points for Android. Prints each result, and fails if a target that could be tried fails.
#
#     tests/cross.sh [TRIPLE…]
#
# No foreign C compiler or SDK is needed, because no dependency contains C. A target's standard library is rustup's if
# available (this script runs `rustup target add TRIPLE`), otherwise built from Debian's source, which takes longer.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/toolchain.sh

targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  targets=(aarch64-linux-android x86_64-linux-android armv7-linux-androideabi aarch64-apple-ios aarch64-apple-ios-sim
    aarch64-apple-darwin x86_64-pc-windows-gnu)
fi
mkdir -p target/cross
log=target/cross/log
for target in "${targets[@]}"; do env -u RUSTC rustup target add "$target" >"$log" 2>&1 || true; done
installed=$(env -u RUSTC rustup target list --installed 2>/dev/null || true)
failed=

say() { printf '%-26s %-42s %s\n' "$@"; }
cross_check() { # TARGET CARGO-ARGUMENT…
  if grep -qx "$1" <<<"$installed"; then
    env -u RUSTC cargo check --target "$1" --target-dir target/cross "${@:2}"
  else
    debian_cargo check --target "$1" --target-dir target/cross "${@:2}"
  fi
}
tried() { # TARGET WHAT CARGO-ARGUMENT…
  if cross_check "$1" "${@:3}" >"$log" 2>&1; then
    say "$1" "$2" ok
  elif grep -q 'error: Dollop needs a' "$log"; then
    say "$1" "$2" "refused: $(sed -n 's/^error: \(Dollop needs a.*\)/\1/p' "$log" | head -1)"
    # All other targets here have 64 bits.
    case "$1" in armv7-*) ;; *) failed=1 ;; esac
  else
    say "$1" "$2" FAILED
    tail -40 "$log"
    failed=1
  fi
}

why=
if [ -n "$(printf '%s\n' "${targets[@]}" | grep -vxF "$installed")" ]; then
  # shellcheck disable=SC2086 # A list.
  packages $rust_packages >"$log" 2>&1 || why="Debian's $rust_packages cannot be had"
fi
for target in "${targets[@]}"; do
  if [ -n "$why" ] && ! grep -qx "$target" <<<"$installed"; then
    say "$target" "" "could not be tried ($why)"
    continue
  fi
  case "$target" in *-android*) jni=dollop-ffi/jni with=", with Kotlin's entry points" ;; *) jni='' with='' ;; esac
  tried "$target" "without GPU kernels$with" -p dollop -p dollop-ffi --no-default-features ${jni:+--features $jni}
  case "$target" in armv7-*) continue ;; esac
  tried "$target" "with GPU kernels$with" -p dollop -p dollop-ffi ${jni:+--features $jni}
done

[ -z "$failed" ]
