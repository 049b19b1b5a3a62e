#!/usr/bin/env bash
# Long tests of the C interface: its programs under AddressSanitizer with LeakSanitizer and under valgrind, and the
# installed library with pkg-config and CMake. Installs and prints what it needs (Debian, as root).
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for tool in valgrind cmake pkg-config; do command -v "$tool" >/dev/null 2>&1 || missing+=("$tool"); done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]} (apt-get)"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp} CARGO_PROFILE_DEV_DEBUG=0
say() { printf '== %s (after %d:%02d min)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

# Everything between the programs and the kernel is instrumented, except the standard library. With RUSTC_BOOTSTRAP a
# stable compiler accepts -Z. Without GPU kernels, because drivers leak.
host=$(rustc -vV | sed -n 's/^host: //p')
say "the library with AddressSanitizer"
RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
  cargo build --quiet -p dollop-ffi --lib --no-default-features --features grammar --target "$host"
say "the library without"
CARGO_TARGET_DIR=target/plain cargo build --quiet -p dollop-ffi --lib --no-default-features --features grammar

programs() { # FILTER…: the tests that run compiled programs, without the search for exports, which sanitizers add to.
  cargo test --quiet -p dollop-ffi --no-default-features --features grammar --test programs -- "$@"
}
say "programs with AddressSanitizer and LeakSanitizer"
DOLLOP_TEST_LIBRARY=$PWD/target/asan/$host/debug DOLLOP_TEST_CFLAGS="-fsanitize=address -fno-omit-frame-pointer" \
  CARGO_TARGET_DIR=target/plain programs every_ saved wrapper_works

say "programs under valgrind"
DOLLOP_TEST_LIBRARY=$PWD/target/plain/debug \
  DOLLOP_TEST_RUNNER="valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite" \
  CARGO_TARGET_DIR=target/plain programs every_ saved wrapper_works

say "the installed library"
prefix=$PWD/target/install
rm -rf "$prefix" target/cmake && mkdir -p target/cmake
ffi/install.sh --prefix "$prefix" --no-gpu
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
# shellcheck disable=SC2046 # Lists of flags.
gcc -std=c11 -Wall -Wextra -Werror examples/c/chat.c $(pkg-config --cflags --libs dollop) -Wl,-rpath,"$prefix/lib" -o target/cmake/pc
cat >target/cmake/CMakeLists.txt <<'CMAKE'
cmake_minimum_required(VERSION 3.16)
project(embed C CXX)
find_package(dollop 0.1 REQUIRED)
add_executable(shared ../../examples/c/chat.c)
target_link_libraries(shared dollop::dollop)
add_executable(static ../../examples/c/chat.c)
target_link_libraries(static dollop::static)
add_executable(cpp ../../examples/cpp/chat.cpp)
target_compile_features(cpp PRIVATE cxx_std_17)
target_link_libraries(cpp dollop::dollop)
CMAKE
cmake -S target/cmake -B target/cmake/build -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build target/cmake/build >/dev/null
for program in target/cmake/pc target/cmake/build/shared target/cmake/build/static; do
  "$program" models/smollm2-moe.gguf | grep -q Paris
done
echo | target/cmake/build/cpp models/smollm2-moe.gguf >/dev/null
# Only the interface is visible from outside of either library.
for list in "-D $prefix/lib/libdollop.so" "-g $prefix/lib/libdollop.a"; do
  # shellcheck disable=SC2086 # Flags and a file.
  names=$(nm --defined-only $list | awk 'NF == 3 { print $3 }')
  [ "$(grep -c '^dollop_' <<<"$names")" -gt 40 ] && ! grep -v '^dollop_' <<<"$names"
done
say "C interface: everything passed"
