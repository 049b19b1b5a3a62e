#!/usr/bin/env bash
# The GPU's kernels on a second driver: SwiftShader, which Debian ships inside chromium (subgroups of 4, no f16, 10 storage
# buffers). Extracts the driver from the package, which is downloaded but not installed. Exits with 3 if that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/target/swiftshader
icd=$out/usr/lib/chromium/vk_swiftshader_icd.json
if [ ! -f "$icd" ]; then
  command -v apt-get >/dev/null 2>&1 || exit 3
  echo "fetching chromium-common (apt-get), for the driver in it"
  mkdir -p "$out"
  (cd "$out" && apt-get download -qq chromium-common 2>/dev/null) || exit 3
  dpkg-deb --fsys-tarfile "$out"/chromium-common_*.deb |
    tar xf - -C "$out" ./usr/lib/chromium/libvk_swiftshader.so ./usr/lib/chromium/vk_swiftshader_icd.json || exit 3
  rm "$out"/chromium-common_*.deb
fi
# Both names: older loaders read only the first.
VK_ICD_FILENAMES=$icd VK_DRIVER_FILES=$icd XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp} DOLLOP_TEST_GPU=1 \
  cargo test --workspace --lib --quiet -- kernels::gpu
