#!/usr/bin/env python3
"""Checks the layout of an AAR: its files, manifest, classes, keep rules and native libraries.

    android/check_aar.py FILE.aar [--native]

With --native, the libraries of both ABIs are required.
"""
import io
import re
import struct
import sys
import xml.etree.ElementTree as xml
import zipfile

ANDROID = "{http://schemas.android.com/apk/res/android}"
MACHINES = {"arm64-v8a": 183, "x86_64": 62}
PAGE = 16384


def need(truth, text):
    if not truth:
        sys.exit(f"{sys.argv[1]}: {text}")


def check_native(abi, data):
    """Checks for a 64-bit shared library of the ABI with 16 KiB aligned segments, which exports only our names."""
    need(data[:6] == b"\x7fELF\x02\x01", f"{abi}: not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    need((kind, machine) == (3, MACHINES[abi]), f"{abi}: type {kind}, machine {machine}")
    programs, sections = struct.unpack_from("<QQ", data, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
    for i in range(program_count):
        kind, _, offset, address, _, _, _, align = struct.unpack_from("<IIQQQQQQ", data, programs + i * program_size)
        if kind == 1:
            need(align % PAGE == 0 and (address - offset) % align == 0, f"{abi}: a segment at 0x{address:x} is aligned to {align}")
    table = [struct.unpack_from("<IIQQQQIIQQ", data, sections + i * section_size) for i in range(section_count)]
    exports = set()
    for section in (s for s in table if s[1] == 11):
        strings = table[section[6]][4]
        for at in range(section[4], section[4] + section[5], section[9]):
            name, info, _, index = struct.unpack_from("<IBBH", data, at)
            if index and info >> 4:
                exports.add(data[strings + name:data.index(b"\0", strings + name)].decode())
    foreign = {e for e in exports if not re.match("dollop_|Java_dev_dollop_Native_", e)}
    need(not foreign, f"{abi}: exports {sorted(foreign)[:5]}")
    need("Java_dev_dollop_Native_engineOpen" in exports, f"{abi}: has no JNI entry points")


def main():
    aar = zipfile.ZipFile(sys.argv[1])
    need(aar.testzip() is None, "damaged")
    names = {n for n in aar.namelist() if not n.endswith("/")}
    native = {n for n in names if n.startswith("jni/")}
    metadata = "META-INF/com/android/build/gradle/aar-metadata.properties"
    expected = {"AndroidManifest.xml", "classes.jar", "R.txt", "proguard.txt", metadata}
    need(names - native == expected, f"has {sorted(names - native)}")
    libraries = {f"jni/{abi}/libdollop.so" for abi in MACHINES}
    need(native <= libraries and (native == libraries or "--native" not in sys.argv), f"has {sorted(native)}")
    for name in sorted(native):
        check_native(name.split("/")[1], aar.read(name))

    manifest = xml.fromstring(aar.read("AndroidManifest.xml"))
    need(manifest.get("package") == "dev.dollop.android", "the manifest has no package")
    need([c.tag for c in manifest] == ["uses-sdk"], "the manifest has more than uses-sdk")
    need(int(manifest[0].get(ANDROID + "minSdkVersion")) >= 21, "minSdkVersion is below 21")

    jar = zipfile.ZipFile(io.BytesIO(aar.read("classes.jar")))
    classes = {n[:-6].replace("/", ".") for n in jar.namelist() if n.endswith(".class")}
    need(all(c.startswith("dev.dollop.") for c in classes), f"foreign classes: {sorted(c for c in classes if not c.startswith('dev.dollop.'))[:5]}")
    for wanted in ("Engine", "Chat", "Session", "android.DeviceMemory", "android.MemoryFollowerKt"):
        need(f"dev.dollop.{wanted}" in classes, f"no class {wanted}")
    need(not any("Test" in c for c in classes), "has test classes")
    # The rules for apps must keep exactly the classes that native code looks up by name, and these must exist.
    kept = set(re.findall(r"^-keep\w* (?:class|interface) ([\w.]+)", aar.read("proguard.txt").decode(), re.M))
    need(kept == {"dev.dollop.Native", "dev.dollop.DollopException", "dev.dollop.Listener", "dev.dollop.LogSink"}, f"rules keep {sorted(kept)}")
    need(kept <= classes, "rules keep classes that do not exist")
    print(f"{sys.argv[1]}: {len(classes)} classes, libraries for {', '.join(sorted(n.split('/')[1] for n in native)) or 'no ABI'}")


if __name__ == "__main__":
    main()
