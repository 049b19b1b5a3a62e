#!/usr/bin/env bash
# Builds the C library and installs it with its headers, pkg-config file and CMake package:
#
#     ffi/install.sh [--prefix DIR] [--no-gpu] [--target TRIPLE] [--destdir DIR]
#
# The prefix is /usr/local by default. DESTDIR is put before it, for packages. The shared library is stripped. On Linux the static
# one is too, and exports only dollop_*, so a program can link it with other static libraries that contain Rust.
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=/usr/local destdir= features=() target=()
while [ $# -gt 0 ]; do
  case "$1" in
    --prefix) prefix=${2:?--prefix needs a folder}; shift 2 ;;
    --destdir) destdir=${2:?--destdir needs a folder}; shift 2 ;;
    --target) target=(--target "${2:?--target needs a triple}"); shift 2 ;;
    --no-gpu) features=(--no-default-features --features grammar); shift ;;
    *) echo "usage: ffi/install.sh [--prefix DIR] [--no-gpu] [--target TRIPLE] [--destdir DIR]" >&2; exit 2 ;;
  esac
done
case "$prefix" in /*) ;; *) prefix=$PWD/$prefix ;; esac

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
abi=$(sed -n 's/^#define DOLLOP_ABI_VERSION \([0-9]*\)/\1/p' ffi/include/dollop.h)
system=$(uname -s)
case "$system" in
  Linux) name=libdollop.so.$abi soname=(-C "link-arg=-Wl,-soname,$name") private="-lgcc_s -lpthread -ldl -lm" ;;
  Darwin) name=libdollop.$abi.dylib soname=(-C "link-arg=-Wl,-install_name,$prefix/lib/$name")
    private="-framework Metal -framework QuartzCore -framework Foundation -lobjc" ;;
  *) echo "ffi/install.sh: $system is not supported; build with: cargo build --release -p dollop-ffi" >&2; exit 1 ;;
esac

cargo rustc --release -p dollop-ffi --lib "${features[@]}" "${target[@]}" -- "${soname[@]}"
built=${CARGO_TARGET_DIR:-target}/${target[1]:+${target[1]}/}release
to=$destdir$prefix
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install -d "$to/lib/pkgconfig" "$to/lib/cmake/dollop" "$to/include"
install -m 644 ffi/include/dollop.h ffi/include/dollop.hpp "$to/include"
if [ "$system" = Linux ]; then
  strip --strip-unneeded -o "$work/$name" "$built/libdollop.so"
  install -m 755 "$work/$name" "$to/lib/$name"
  ln -sf "$name" "$to/lib/libdollop.so"
  # One object with everything that the header's functions need. All other symbols become local to it.
  roots=$(sed -n 's/.*\b\(dollop_[a-z_0-9]*\)(.*/-u \1/p' ffi/include/dollop.h | sort -u)
  # shellcheck disable=SC2086 # A list of options.
  ld -r --gc-sections $roots -o "$work/all.o" "$built/libdollop.a"
  # Drops the compiler's intermediate code: `ar` would read it as that of its own LLVM.
  objcopy --wildcard --keep-global-symbol='dollop_*' --strip-debug -R .llvmbc -R .llvmcmd "$work/all.o" "$work/dollop.o"
  ar rcsD "$work/libdollop.a" "$work/dollop.o"
else
  strip -x -o "$work/$name" "$built/libdollop.dylib"
  install -m 755 "$work/$name" "$to/lib/$name"
  ln -sf "$name" "$to/lib/libdollop.dylib"
  cp "$built/libdollop.a" "$work/libdollop.a"
fi
install -m 644 "$work/libdollop.a" "$to/lib/libdollop.a"

fill() { # TEMPLATE FILE
  sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" -e "s|@SHARED@|$name|g" -e "s|@PRIVATE@|$private|g" \
    -e "s|@MAJOR@|$(echo "$version" | cut -d. -f1)|g" -e "s|@MINOR@|$(echo "$version" | cut -d. -f2)|g" "$1" >"$work/filled"
  install -m 644 "$work/filled" "$to/$2"
}
fill ffi/dollop.pc.in lib/pkgconfig/dollop.pc
fill ffi/cmake/dollopConfig.cmake.in lib/cmake/dollop/dollopConfig.cmake
fill ffi/cmake/dollopConfigVersion.cmake.in lib/cmake/dollop/dollopConfigVersion.cmake
echo "installed $name, libdollop.a and headers of Dollop $version into $to"
