#!/usr/bin/env bash
# Builds libdollop.so with the JNI entry points for Android devices. Gradle and aar.sh take it from target/android/jni/ABI.
#
#     ANDROID_NDK_HOME=… android/native.sh [--no-gpu]
#
# Needs Google's NDK (r27 or later) and two Rust targets: rustup target add aarch64-linux-android x86_64-linux-android. Exits with 3
# if there is no NDK.
set -euo pipefail
cd "$(dirname "$0")/.."

features=(--features jni)
case "${1:-}" in
  "") ;;
  --no-gpu) features=(--no-default-features --features grammar,jni) ;;
  *) echo "usage: android/native.sh [--no-gpu]" >&2; exit 2 ;;
esac
ndk=${ANDROID_NDK_HOME:-}
tools=$(echo "$ndk"/toolchains/llvm/prebuilt/*/bin)
if [ -z "$ndk" ] || [ ! -x "$tools/llvm-strip" ]; then
  echo "android/native.sh: no NDK: set ANDROID_NDK_HOME (https://developer.android.com/ndk/downloads)" >&2
  exit 3
fi

# The minSdk of library/build.gradle.kts.
api=24
for pair in arm64-v8a:aarch64-linux-android x86_64:x86_64-linux-android; do
  abi=${pair%%:*} target=${pair##*:}
  upper=$(echo "$target" | tr 'a-z-' 'A-Z_')
  # Some devices with Android 15 or later have 16 KiB pages.
  env "CARGO_TARGET_${upper}_LINKER=$tools/$target$api-clang" \
    "CARGO_TARGET_${upper}_RUSTFLAGS=-C link-arg=-Wl,-z,max-page-size=16384 -C link-arg=-Wl,-soname,libdollop.so" \
    "CC_$(echo "$target" | tr - _)=$tools/$target$api-clang" "AR_$(echo "$target" | tr - _)=$tools/llvm-ar" \
    cargo build --release -p dollop-ffi --lib "${features[@]}" --target "$target"
  install -d "target/android/jni/$abi"
  "$tools/llvm-strip" --strip-unneeded -o "target/android/jni/$abi/libdollop.so" \
    "${CARGO_TARGET_DIR:-target}/$target/release/libdollop.so"
  echo "target/android/jni/$abi/libdollop.so: $(stat -c %s "target/android/jni/$abi/libdollop.so") bytes"
done
