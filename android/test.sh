#!/usr/bin/env bash
# Builds the native library with the JNI entry points. Builds the Kotlin library and its Android layer with Maven, and tests them
# under -Xcheck:jni. Then assembles an AAR and checks its layout. Needs JDK 17 or later and Maven (Debian: default-jdk-headless
# maven). Arguments are passed to Maven: `-Ddollop.races=10000` runs more races.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in javac mvn; do
  command -v "$tool" >/dev/null || { echo "android/test.sh: please install default-jdk-headless and maven" >&2; exit 3; }
done
# Shares the target folder of tests/ffi.sh, because most build products are the same.
CARGO_TARGET_DIR=target/plain cargo build --quiet -p dollop-ffi --lib --no-default-features --features grammar,jni
other=$(nm -D --defined-only target/plain/debug/libdollop.so | awk '{ print $3 }' | grep -v '^dollop_\|^Java_dev_dollop_Native_' || true)
[ -z "$other" ] || { echo "android/test.sh: exports other than dollop_* and JNI names: $other" >&2; exit 1; }
# The compilers run for seconds, so the JVM's optimizing compiler would take longer than it saves.
export MAVEN_OPTS=${MAVEN_OPTS:--XX:TieredStopAtLevel=1 -XX:+UseSerialGC}
(cd android && mvn -B -q test "$@") | tee target/maven.log
if grep 'WARNING in native method\|FATAL ERROR in native method' target/maven.log >&2; then exit 1; fi

code=0
android/native.sh || code=$?
[ "$code" = 0 ] || [ "$code" = 3 ] || exit "$code"
android/aar.sh
android/check_aar.py target/aar/*.aar $([ "$code" = 3 ] || echo --native)
