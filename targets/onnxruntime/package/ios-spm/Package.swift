// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "@MODULE@",
    platforms: [.iOS(.v@IOS@), .macOS(.v@MACOS@)],
    products: [
        .library(name: "@MODULE@", targets: ["@MODULE@"]),
    ],
    dependencies: [
        .package(url: "@RUNTIME_URL@", from: "@RUNTIME_VERSION@"),
    ],
    targets: [
        .target(
            name: "@MODULE@Core",
            dependencies: [
                .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager"),
            ]
        ),
        .target(
            name: "@MODULE@",
            dependencies: ["@MODULE@Core"],
            resources: [.copy("assets"), .copy("PrivacyInfo.xcprivacy")]
        ),
        .testTarget(name: "@MODULE@Tests", dependencies: ["@MODULE@"]),
    ]
)
