#!/usr/bin/env bash
# Builds the library's tests for Windows with mingw-w64 and runs those of files, memory and sessions under Wine. Arithmetic
# (kernels, codes) and templates are the same everywhere, and slow without optimisation. Exits with 3 without the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/toolchain.sh
# shellcheck disable=SC2086 # A list.
packages $rust_packages gcc-mingw-w64-x86-64 wine64 || exit 3
target=x86_64-pc-windows-gnu
out=$PWD/target/windows
mkdir -p "$out/tools"

# Rust links two objects that only 32-bit Windows needs; a source build of the standard library does not contain them. The
# linker's name determines the flavour of its arguments.
cat >"$out/tools/gcc" <<'LINK'
#!/bin/sh
for argument do
  shift
  case "$argument" in *rsbegin.o | *rsend.o) ;; *) set -- "$@" "$argument" ;; esac
done
exec x86_64-w64-mingw32-gcc "$@"
LINK
chmod +x "$out/tools/gcc"
# Random numbers come from a library that Wine 8 lacks. This is its one function, implemented with an older one.
cat >"$out/tools/prng.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T len) { return SystemFunction036(data, (ULONG)len); }
C
x86_64-w64-mingw32-gcc -shared "$out/tools/prng.c" -o "$out/tools/bcryptprimitives.dll" -ladvapi32

export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=$out/tools/gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER="timeout 1200 /usr/lib/wine/wine64"
export WINEPREFIX=$out/prefix WINEDEBUG=-all WINEPATH="Z:${out//\//\\}\\tools"
std=std,panic_unwind,test

say() { printf '== %s (after %d:%02d min)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }
windows_tests() { # PACKAGE CARGO-ARGUMENT…
  debian_cargo test --quiet --target $target --target-dir target/cross --no-default-features -p "$@"
}
say "the library's own tests"
windows_tests dollop --lib -- --skip kernels:: --skip quant:: --skip template::
