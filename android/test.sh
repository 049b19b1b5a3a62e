#!/usr/bin/env bash
# Builds the native library with the entry points of Kotlin, and the Kotlin library with Maven, and tests them together under
# -Xcheck:jni. Needs a JDK and Maven (Debian: default-jdk-headless maven); `-Ddollop.races=10000` has more races.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in javac mvn; do
  command -v "$tool" >/dev/null || { echo "android/test.sh: please install default-jdk-headless and maven" >&2; exit 3; }
done
CARGO_TARGET_DIR=target/jni cargo build --quiet -p dollop-ffi --lib --no-default-features --features jni
other=$(nm -D --defined-only target/jni/debug/libdollop.so | awk '{ print $3 }' | grep -v '^dollop_\|^Java_dev_dollop_Native_' || true)
[ -z "$other" ] || { echo "android/test.sh: exports beside dollop_* and JNI names: $other" >&2; exit 1; }
cd android/core
mvn -B -q test "$@" | tee ../../target/maven.log
! grep -q 'WARNING in native method\|FATAL ERROR in native method' ../../target/maven.log
