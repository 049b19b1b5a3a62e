#!/usr/bin/env bash
# Builds Dollop.xcframework in this folder, for Package.swift: static libraries for iOS devices, the iOS simulator and macOS.
# Needs a Mac with Xcode and rustup.
#
#     ios/build-xcframework.sh [--no-gpu]
set -euo pipefail
cd "$(dirname "$0")/.."

features=()
case "${1:-}" in
  "") ;;
  --no-gpu) features=(--no-default-features --features grammar) ;;
  *) echo "usage: ios/build-xcframework.sh [--no-gpu]" >&2; exit 2 ;;
esac
for tool in xcodebuild lipo rustup cargo; do
  command -v "$tool" >/dev/null || { echo "ios/build-xcframework.sh: $tool is missing; this needs a Mac with Xcode and rustup" >&2; exit 3; }
done

# The same versions as in Package.swift.
export IPHONEOS_DEPLOYMENT_TARGET=16.0 MACOSX_DEPLOYMENT_TARGET=13.0
targets=(aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios aarch64-apple-darwin x86_64-apple-darwin)
rustup target add "${targets[@]}"

target_folder=${CARGO_TARGET_DIR:-$PWD/target}
work=$target_folder/xcframework
rm -rf "$work" ios/Dollop.xcframework
# The module has a folder of its own, because Xcode copies the headers of all XCFrameworks of an app into one folder.
mkdir -p "$work/Headers/CDollop"
cp ffi/include/dollop.h "$work/Headers/CDollop/"
cat >"$work/Headers/CDollop/module.modulemap" <<'MAP'
module CDollop {
  header "dollop.h"
  export *
}
MAP

for target in "${targets[@]}"; do
  # ${a[@]+…}: the bash of macOS treats an empty array as an unset variable.
  cargo rustc --release -p dollop-ffi --lib --crate-type staticlib --target "$target" ${features[@]+"${features[@]}"}
  mkdir -p "$work/$target"
  cp "$target_folder/$target/release/libdollop.a" "$work/$target/"
  strip -S "$work/$target/libdollop.a"
done

universal() { # NAME TARGET…: one library of those for several processors
  local name=$1 libraries=() target
  shift
  for target in "$@"; do libraries+=("$work/$target/libdollop.a"); done
  mkdir -p "$work/$name"
  lipo -create "${libraries[@]}" -output "$work/$name/libdollop.a"
}
universal simulator aarch64-apple-ios-sim x86_64-apple-ios
universal macos aarch64-apple-darwin x86_64-apple-darwin

xcodebuild -create-xcframework \
  -library "$work/aarch64-apple-ios/libdollop.a" -headers "$work/Headers" \
  -library "$work/simulator/libdollop.a" -headers "$work/Headers" \
  -library "$work/macos/libdollop.a" -headers "$work/Headers" \
  -output ios/Dollop.xcframework
echo "made ios/Dollop.xcframework"
