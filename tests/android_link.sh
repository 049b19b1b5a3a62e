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
packages $rust_packages clang lld llvm || exit 3

# As in android/: the oldest system, and pages as large as they come.
api=26
page=16384
out=$PWD/target/cross/$target/system
rm -rf "$out" && mkdir -p "$out"
stand_in() { # LIBRARY: of the names that the list has of it.
  awk -v l="$1" '$1 == l { print "void " $2 "(void) {}" }' tests/android/imports.txt >"$out/$1.c"
  clang --target="$target$api" -w -fno-builtin -fPIC -c "$out/$1.c" -o "$out/$1.o"
}
for library in libc libm libdl liblog; do
  stand_in $library
  ld.lld -shared -soname $library.so "$out/$library.o" -o "$out/$library.so"
done
stand_in libunwind
ar rcs "$out/libunwind.a" "$out/libunwind.o"

cat >"$out/link" <<LINK
#!/bin/sh
exec clang --target=$target$api -fuse-ld=lld -nostartfiles -L"$out" -Wl,--no-undefined "\$@"
LINK
chmod +x "$out/link"
triple=${target^^}
export "CARGO_TARGET_${triple//-/_}_LINKER=$out/link"
profile=debug
case " $* " in *" --release "*) profile=release ;; esac
debian_cargo rustc -p dollop-ffi --lib --crate-type cdylib --target "$target" --target-dir target/cross --features jni "$@"
library=target/cross/$target/$profile/libdollop.so

fail() { echo "$library: $*" >&2; exit 1; }
exported=$(readelf -W --dyn-syms "$library" | awk '$7 != "UND" && ($5 == "GLOBAL" || $5 == "WEAK") { sub("@.*", "", $8); print $8 }')
others=$(grep -vE '^(dollop_[a-z_0-9]+|Java_[A-Za-z_0-9]+|JNI_OnLoad|JNI_OnUnload)$' <<<"$exported" || true)
[ -z "$others" ] || fail "exports" $others
c=$(grep -c '^dollop_' <<<"$exported") java=$(grep -c '^Java_' <<<"$exported")
declared=$(grep -oE '\bdollop_[a-z_0-9]+\(' ffi/include/dollop.h | sort -u | wc -l)
[ "$c" = "$declared" ] || fail "exports $c functions of the $declared that the header declares"
[ "$java" -gt 10 ] || fail "exports $java entry points of Kotlin"

needed=$(readelf -dW "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
for name in $needed; do
  case "$name" in libc.so | libm.so | libdl.so | liblog.so) ;; *) fail "needs $name" ;; esac
done
readelf -dW "$library" | grep -q 'SONAME.*\[libdollop.so\]' || fail "has no name"
aligned=$(readelf -lW "$library" | awk '$1 == "LOAD" { print $NF }')
for alignment in $aligned; do
  [ $((alignment)) -ge $page ] || fail "a segment is aligned to $alignment bytes"
done
[ "$(wc -l <<<"$aligned")" -ge 2 ] || fail "has no segments"

llvm-strip --strip-unneeded "$library" -o "$out/libdollop.so"
echo "$c + $java functions exported, needs ${needed}and is aligned to $page; $(stat -c %s "$out/libdollop.so") bytes stripped ($profile)"
