// swift-tools-version: 6.0
// The Swift package of Dollop. On a Mac, the native library is the XCFramework that `build-xcframework.sh` makes in this folder. On
// Linux, it is the installed library (`ffi/install.sh`), which pkg-config finds.
import PackageDescription

#if os(macOS)
let native = Target.binaryTarget(name: "CDollop", path: "Dollop.xcframework")
#else
let native = Target.systemLibrary(name: "CDollop", pkgConfig: "dollop")
#endif

let package = Package(
    name: "Dollop",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Dollop", targets: ["Dollop"])],
    targets: [
        native,
        .target(
            name: "Dollop",
            dependencies: ["CDollop"],
            linkerSettings: [
                // The system libraries that the static library needs. The dynamic one names them itself.
                .linkedFramework("Metal", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("QuartzCore", .when(platforms: [.iOS, .macOS])),
                .linkedLibrary("objc", .when(platforms: [.iOS, .macOS])),
                .linkedLibrary("gcc_s", .when(platforms: [.linux])),
                .linkedLibrary("m", .when(platforms: [.linux])),
            ]
        ),
        .testTarget(name: "DollopTests", dependencies: ["Dollop", "CDollop"]),
    ],
    swiftLanguageModes: [.v6]
)
