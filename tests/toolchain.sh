# Sourced by scripts that build for other systems: Debian's own Rust, beside rustup's. It contains the standard library's
# source, so that libraries for any system can be built, and the aarch64 Linux library as a package.
#
# RUSTC and `debian_cargo` refer to it. With RUSTC_BOOTSTRAP its stable compiler accepts -Z.

packages() { # PACKAGE…: installs and prints those that are missing; 3 if that is not possible.
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "please install: ${missing[*]}" >&2
    return 3
  fi
  echo "installing ${missing[*]} (apt-get)"
  case "${missing[*]}" in *:arm64*) dpkg --add-architecture arm64 ;; esac
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || return 3
}

rust_packages="rustc-web cargo-web rust-web-src libstd-rust-web-dev"
export RUSTC=/usr/bin/rustc CARGO_PROFILE_DEV_DEBUG=0

debian_cargo() { # SUBCOMMAND ARGUMENT…: with the standard library built from source; `std` names its crates.
  # Without reading debug information for backtraces, a third of the library.
  RUSTC_BOOTSTRAP=1 /usr/bin/cargo "$1" "-Zbuild-std=${std:-std,panic_unwind}" -Zbuild-std-features=panic-unwind \
    --config tests/cross.toml "${@:2}"
}
