#!/usr/bin/env bash
# Builds libdollop and tests the Swift package with the static library: ios/test.sh [arguments of `swift test`]
#
# Uses Swift 6 from PATH. If there is none, on Debian as root, this installs Debian trixie with its Swift into a folder that is
# kept (DOLLOP_SWIFT_ROOT, 3.4 GB; about five minutes, once), and runs it there with chroot. Exit status 3: no Swift available.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '== %s (after %d:%02d min)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

swift_6() { command -v swift >/dev/null && swift --version 2>&1 | grep -q 'Swift version [6-9]'; }

if [ "$(uname -s)" = Darwin ]; then
  swift_6 || { echo "ios/test.sh: please install Xcode 16" >&2; exit 3; }
  [ -d ios/Dollop.xcframework ] || ios/build-xcframework.sh --no-gpu
  exec swift test --package-path ios "$@"
fi

install_swift() {
  local partial=$root.partial
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "ios/test.sh: please install Swift 6 (swift.org)" >&2
    return 3
  fi
  if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap (apt-get)"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null || return 3
  fi
  say "installing Debian trixie with swiftlang into $root"
  rm -rf "$partial"
  mkdir -p "$(dirname "$root")" target
  debootstrap --variant=minbase --include=ca-certificates trixie "$partial" >target/swift-debootstrap.log || return 3
  cp /etc/resolv.conf "$partial/etc/"
  chroot "$partial" apt-get update -qq || return 3
  chroot "$partial" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    swiftlang libstdc++-14-dev libc6-dev pkg-config git >target/swift-install.log 2>&1 || return 3
  mv "$partial" "$root"
}

root=${DOLLOP_SWIFT_ROOT:-/var/cache/dollop/trixie}
if swift_6; then
  inside() { bash -ec "$1" inside "${@:2}"; }
else
  # The folder is moved into place when the installation is complete, so its existence is the test. A file in it is not, because its
  # links point outside of it.
  [ -d "$root" ] || install_swift || exit 3
  # The mounts are private to this command, so nothing of the repository stays in the folder afterwards.
  inside() {
    unshare --mount --propagation private bash -euc '
      root=$1 here=$2
      mkdir -p "$root$here"
      mount --bind "$here" "$root$here"
      mount -t proc proc "$root/proc"
      mount --bind /dev "$root/dev"
      exec chroot "$root" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/bin:/usr/libexec/swift/bin \
        DOLLOP_TEST_FULL="${DOLLOP_TEST_FULL:-}" bash -ec "cd \"\$0\"; $3" "$here" "${@:4}"' \
      inside "$root" "$PWD" "$@"
  }
fi

say "libdollop, installed below target/swift"
prefix=$PWD/target/swift/prefix
ffi/install.sh --prefix "$prefix" --no-gpu
# Without the dynamic library, the linker uses the static one.
rm -f "$prefix"/lib/libdollop.so*

say "the Swift package"
tests() {
  export PKG_CONFIG_PATH=$PWD/target/swift/prefix/lib/pkgconfig
  swift --version 2>&1 | head -1
  # The symbol graph is written when the package is compiled, and kept for later runs that compile nothing.
  mkdir -p target/swift/symbols/Dollop
  swift build --package-path ios --build-tests -Xswiftc -warnings-as-errors -Xswiftc -emit-symbol-graph \
    -Xswiftc -emit-symbol-graph-dir -Xswiftc "$PWD/target/swift/symbols" >target/swift/build.log 2>&1 || {
    cat target/swift/build.log
    return 1
  }
  echo "== the example app: the sources without SwiftUI are compiled, the others parsed"
  # shellcheck disable=SC2046 # Flags.
  swiftc -swift-version 6 -warnings-as-errors -typecheck -I ios/.build/debug/Modules -I ios/Sources/CDollop \
    $(pkg-config --cflags-only-I dollop | sed "s/-I/-Xcc -I/g") ios/Example/Sources/ChatModel.swift
  swiftc -parse ios/Example/Sources/*.swift
  echo "== the sources for Apple's systems: types are checked against stubs"
  local stubs=target/swift/stubs
  mkdir -p $stubs
  swiftc -swift-version 6 -emit-module -module-name UIKit -o $stubs/UIKit.swiftmodule ios/Tests/Stubs/UIKit.swift
  swiftc -emit-module -module-name Darwin -o $stubs/Darwin.swiftmodule - </dev/null
  # shellcheck disable=SC2046
  swiftc -swift-version 6 -warnings-as-errors -typecheck -I $stubs -I ios/Sources/CDollop \
    $(pkg-config --cflags-only-I dollop | sed "s/-I/-Xcc -I/g") ios/Sources/Dollop/*.swift
  if command -v docc >/dev/null; then
    echo "== the documentation: all links are checked"
    cp target/swift/symbols/Dollop.symbols.json target/swift/symbols/Dollop/
    docc convert ios/Sources/Dollop/Dollop.docc --additional-symbol-graph-dir target/swift/symbols/Dollop \
      --output-path target/swift/documentation --fallback-display-name Dollop --fallback-bundle-identifier dev.dollop \
      --warnings-as-errors
  fi
  swift test --package-path ios --skip-build "$@"
}
inside "$(declare -f tests); tests \"\$@\"" "$@"
