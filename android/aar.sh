#!/usr/bin/env bash
# Assembles an AAR without Gradle, from the output of Maven (`mvn compile` in this folder) and native.sh. Writes
# target/aar/dollop-android-VERSION.aar, which includes the core's classes, and a POM with its dependencies. Reports missing native
# libraries: without them the AAR is incomplete.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's|^  <version>\(.*\)</version>|\1|p' android/pom.xml)
value() { sed -n "s|.*<$1>\(.*\)</$1>.*|\1|p" android/pom.xml; }
min=$(sed -n 's/.*minSdk = \([0-9]*\)/\1/p' android/library/build.gradle.kts)
for module in core library; do
  [ -d "android/$module/target/classes/dev/dollop" ] || { echo "android/aar.sh: run mvn compile in android first" >&2; exit 1; }
done

out=target/aar stage=target/aar/stage
rm -rf "$out" && mkdir -p "$stage/META-INF/com/android/build/gradle"
jar --create --file "$stage/classes.jar" --no-manifest -C android/core/target/classes . -C android/library/target/classes .
sed -e "s|^<manifest .*>|<manifest xmlns:android=\"http://schemas.android.com/apk/res/android\" package=\"dev.dollop.android\">|" \
  -e "\$a\\    <uses-sdk android:minSdkVersion=\"$min\" />\\n</manifest>" android/library/src/main/AndroidManifest.xml >"$stage/AndroidManifest.xml"
cp android/library/consumer-rules.pro "$stage/proguard.txt"
: >"$stage/R.txt"
printf 'aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=%s\nminCompileSdkExtension=0\nminAndroidGradlePluginVersion=1.0.0\n' \
  "$min" >"$stage/META-INF/com/android/build/gradle/aar-metadata.properties"
missing=
for abi in arm64-v8a x86_64; do
  if [ -f "target/android/jni/$abi/libdollop.so" ]; then
    install -D -m 644 "target/android/jni/$abi/libdollop.so" "$stage/jni/$abi/libdollop.so"
  else
    missing+=" jni/$abi/libdollop.so"
  fi
done
name=dollop-android-$version
jar --create --file "$out/$name.aar" --no-manifest -C "$stage" .
rm -r "$stage"
cat >"$out/$name.pom" <<POM
<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dev.dollop</groupId>
  <artifactId>dollop-android</artifactId>
  <version>$version</version>
  <packaging>aar</packaging>
  <dependencies>
    <dependency><groupId>org.jetbrains.kotlin</groupId><artifactId>kotlin-stdlib</artifactId><version>$(value kotlin.version)</version></dependency>
    <dependency><groupId>org.jetbrains.kotlinx</groupId><artifactId>kotlinx-coroutines-android</artifactId><version>$(value coroutines.version)</version></dependency>
    <dependency><groupId>org.jetbrains.kotlinx</groupId><artifactId>kotlinx-serialization-json</artifactId><version>$(value serialization.version)</version></dependency>
  </dependencies>
</project>
POM
echo "$out/$name.aar: $(stat -c %s "$out/$name.aar") bytes"
[ -z "$missing" ] || echo "android/aar.sh: missing in the AAR:$missing (android/native.sh builds them; it needs Google's NDK)" >&2
