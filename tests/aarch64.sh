#!/usr/bin/env bash
# Builds for aarch64 and runs under qemu: the kernels' tests with i8mm (and every other extension), with the dot product,
# with neither; the C interface's own tests; a program in C that links the library statically and dynamically.
# Uses Debian's Rust, which has the aarch64 standard library; prints what it installs. Exits with 3 if that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/toolchain.sh
# shellcheck disable=SC2086 # A list.
packages $rust_packages libstd-rust-web-dev:arm64 libgcc-s1:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user || exit 3
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
aarch64_cargo() { # SUBCOMMAND ARGUMENT…
  /usr/bin/cargo "$1" --quiet --target $target --target-dir target/aarch64 "${@:2}"
}
for core in max=i8mm neoverse-n1=dotprod cortex-a53=scalar; do
  cpu=${core%=*}
  echo "== qemu -cpu $cpu: ${core#*=}"
  DOLLOP_TEST_ISA=${core#*=} CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="timeout 600 qemu-aarch64 -cpu $cpu" \
    aarch64_cargo test -p dollop --no-default-features --lib -- kernels::
done
echo "== the C interface"
qemu="timeout 1200 qemu-aarch64 -cpu max"
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$qemu aarch64_cargo test -p dollop-ffi --no-default-features --lib
aarch64_cargo build -p dollop-ffi --no-default-features --lib
# The test that compiles and runs the program itself runs on this machine.
env -u RUSTC DOLLOP_TEST_LIBRARY="$PWD/target/aarch64/$target/debug" DOLLOP_TEST_CC=aarch64-linux-gnu-gcc DOLLOP_TEST_RUNNER="$qemu" \
  cargo test --quiet --workspace --test programs -- every_function
