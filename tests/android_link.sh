#!/usr/bin/env bash
# Links the Android library, with Kotlin's entry points, and reads what came out: which names it exports, which libraries it needs, how
# its segments are aligned, how large it is.
#
#     tests/android_link.sh TRIPLE [CARGO-ARGUMENT…]
#
# Google's NDK is not needed: the system's libraries are stand-ins made of `tests/android/imports.txt`, which have the names that the
# library imports and nothing behind them, and so has the unwinder that the NDK links statically. So this shows that the library links
# and against what. It does not run. Exits with 3 where the tools cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/toolchain.sh
target=${1:?a triple, as aarch64-linux-android}
shift
# shellcheck disable=SC2086 # A list.
packages $rust_packages clang lld || exit 3

# As in android/: the oldest system, and pages as large as they come.
api=26
page=16384
out=$PWD/target/cross/$target/system
rm -rf "$out" && mkdir -p "$out"
stand_in() { # LIBRARY KIND NAME…
  local source=$out/$1.c name
  for name in "${@:3}"; do
    # Data is what a library's C names in capitals or begins with `std`; whether it is does not matter to a linker here.
    echo "void $name(void) {}"
  done >"$source"
  if [ "$2" = shared ]; then
    clang --target="$target$api" -fuse-ld=lld -w -fno-builtin -nostdlib -shared -Wl,-soname,"$1.so" "$source" -o "$out/$1.so"
  else
    clang --target="$target$api" -w -fno-builtin -c "$source" -o "$out/$1.o" && ar rcs "$out/$1.a" "$out/$1.o"
  fi
}
for library in libc libm libdl liblog; do
  mapfile -t names < <(awk -v l="$library" '$1 == l { print $2 }' tests/android/imports.txt)
  stand_in "$library" shared "${names[@]}"
done
