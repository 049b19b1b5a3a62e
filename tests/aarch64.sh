#!/usr/bin/env bash
# Builds the kernels for aarch64 and runs their tests under qemu: with i8mm (and every other extension), with the dot
# product, with neither.
# Uses Debian's rustc-web (a second toolchain with the aarch64 standard library); installs it and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x /usr/bin/rustc ] || ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  echo "installing rustc-web, cargo-web, the aarch64 libraries and qemu-user (apt-get)"
  dpkg --add-architecture arm64
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustc-web cargo-web rust-web-src \
    libstd-rust-web-dev libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null
fi
export RUSTC=/usr/bin/rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
for core in max=i8mm neoverse-n1=dotprod cortex-a53=scalar; do
  cpu=${core%=*}
  export DOLLOP_TEST_ISA=${core#*=}
  echo "== qemu -cpu $cpu: $DOLLOP_TEST_ISA"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="timeout 600 qemu-aarch64 -cpu $cpu" \
    /usr/bin/cargo test --quiet -p dollop --lib --target aarch64-unknown-linux-gnu --target-dir target/aarch64 -- kernels::
done
