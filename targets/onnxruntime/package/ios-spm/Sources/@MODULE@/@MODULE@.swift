import CoreGraphics
import Foundation
#if SWIFT_PACKAGE
import @MODULE@Core
#endif

/// @NAME@ @VERSION@ (@TARGET@): the model with its preprocessing, labels and self-test.
///
/// Use one instance a thread. Its types are nested, so that an app can take two models and none of the names is
/// that of another module.
public final class @MODULE@ {
    /// What went wrong, in words.
    public struct ModelError: Error, CustomStringConvertible {
        public let description: String
    }

    /// One class. The score is what the post-processing contract makes of the model's output.
    public struct Category {
        public let index: Int
        public let label: String
        public let score: Float
    }

    /// One object that was found. Corners are in pixels of the image that was given, and not beyond its edges. Without
    /// one they are shares of the model's input: of the image as it was resized and cropped.
    public struct Box {
        public let index: Int
        public let label: String
        public let score: Float
        public let left: Float
        public let top: Float
        public let right: Float
        public let bottom: Float
    }

    /// One golden vector.
    public struct SelfTestCase {
        public let name: String
        public let passed: Bool
        public let error: Double
        public let limit: Double
        public let message: String
    }

    /// Class names in output order; empty where the model has none.
    public let labels: [String]
    private let model: OpaquePointer
    private let assets: URL

    /// Load from the package's resources, or from a folder with the same files.
    public init(assets folder: URL? = nil) throws {
        assets = folder ?? @MODULE@.resources().appendingPathComponent("assets")
        var message = [CChar](repeating: 0, count: 512)
        guard let loaded = @C_PREFIX@_load(assets.path, &message, message.count) else {
            throw ModelError(description: String(cString: message))
        }
        model = loaded
        let file = assets.appendingPathComponent("labels.txt")
        let text = (try? String(contentsOf: file, encoding: .utf8)) ?? ""
        labels = text.split(separator: "\n").map(String.init)
    }

    /// Where the package's resources are: SwiftPM makes a bundle of its own, CocoaPods one that the podspec names.
    private static func resources() -> URL {
        #if SWIFT_PACKAGE
        let bundle = Bundle.module
        #else
        let around = Bundle(for: @MODULE@.self)
        let inside = around.url(forResource: "@MODULE@_@MODULE@", withExtension: "bundle")
        let bundle = inside.flatMap { Bundle(url: $0) } ?? around
        #endif
        return bundle.resourceURL ?? bundle.bundleURL
    }

    deinit {
        @C_PREFIX@_free(model)
    }

    /// Outputs as real values, in the model's order, for an RGB image of 3 bytes a pixel.
    public func predict(rgb: [UInt8], width: Int, height: Int) throws -> [[Float]] {
        guard width > 0, height > 0, rgb.count == width * height * 3 else {
            throw ModelError(description: "\(rgb.count) bytes are no RGB image of \(width) x \(height) pixels")
        }
        var fed = [UInt8](repeating: 0, count: @C_PREFIX@_input_bytes(0))
        var message = [CChar](repeating: 0, count: 512)
        let done = fed.withUnsafeMutableBytes { buffer in
            @C_PREFIX@_preprocess(rgb, Int32(height), Int32(width), buffer.baseAddress, &message, message.count)
        }
        guard done == 1 else {
            throw ModelError(description: String(cString: message))
        }
        return try run([fed])
    }

    /// Outputs for an image, drawn as RGB without colour management.
    public func predict(_ image: CGImage) throws -> [[Float]] {
        let (width, height) = (image.width, image.height)
        var rgba = [UInt8](repeating: 0, count: width * height * 4)
        let drawn = rgba.withUnsafeMutableBytes { buffer -> Bool in
            guard let context = CGContext(
                data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8,
                bytesPerRow: width * 4, space: image.colorSpace ?? CGColorSpaceCreateDeviceRGB(),
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
            ) else {
                return false
            }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else {
            throw ModelError(description: "the image cannot be drawn as RGB")
        }
        var rgb = [UInt8](repeating: 0, count: width * height * 3)
        for i in 0..<(width * height) {
            rgb[3 * i] = rgba[4 * i]
            rgb[3 * i + 1] = rgba[4 * i + 1]
            rgb[3 * i + 2] = rgba[4 * i + 2]
        }
        return try predict(rgb: rgb, width: width, height: height)
    }

    /// The best classes, best first.
    public func classify(rgb: [UInt8], width: Int, height: Int, count: Int = 3) throws -> [Category] {
        return try best(predict(rgb: rgb, width: width, height: height), count)
    }

    public func classify(_ image: CGImage, count: Int = 3) throws -> [Category] {
        return try best(predict(image), count)
    }

    /// What a detector finds, best first, in the image's pixels.
    public func detect(rgb: [UInt8], width: Int, height: Int) throws -> [Box] {
        return try boxes(predict(rgb: rgb, width: width, height: height), width: width, height: height)
    }

    public func detect(_ image: CGImage) throws -> [Box] {
        return try boxes(predict(image), width: image.width, height: image.height)
    }

    /// Run on the raw bytes of every input, in order. Throws on a wrong size.
    public func run(_ inputs: [[UInt8]]) throws -> [[Float]] {
        guard inputs.count == @C_PREFIX@_input_count() else {
            throw ModelError(description: "the model has \(@C_PREFIX@_input_count()) inputs")
        }
        for (index, input) in inputs.enumerated() where input.count != @C_PREFIX@_input_bytes(index) {
            throw ModelError(
                description: "input \(index) takes \(@C_PREFIX@_input_bytes(index)) bytes, not \(input.count)")
        }
        let fed = inputs.map { input -> UnsafeMutableRawPointer in
            let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(input.count, 1), alignment: 16)
            buffer.copyMemory(from: input, byteCount: input.count)
            return buffer
        }
        let found = (0..<@C_PREFIX@_output_count()).map { index in
            UnsafeMutableRawPointer.allocate(byteCount: max(@C_PREFIX@_output_bytes(index), 1), alignment: 16)
        }
        defer {
            fed.forEach { $0.deallocate() }
            found.forEach { $0.deallocate() }
        }
        var message = [CChar](repeating: 0, count: 512)
        let inputPointers: [UnsafeRawPointer?] = fed.map { UnsafeRawPointer($0) }
        let outputPointers: [UnsafeMutableRawPointer?] = found
        guard @C_PREFIX@_run(model, inputPointers, outputPointers, &message, message.count) == 1 else {
            throw ModelError(description: String(cString: message))
        }
        return found.enumerated().map { index, data in
            let total = @C_PREFIX@_floats(index, data, nil, 0)
            var values = [Float](repeating: 0, count: total)
            _ = @C_PREFIX@_floats(index, data, &values, total)
            return values
        }
    }

    /// Whether the package has golden vectors; one for a release may do without.
    public static var hasGoldenVectors: Bool {
        return @C_PREFIX@_case_count() > 0
    }

    /// Run the golden vectors on this device. Throws where the package has none.
    public func selfTest() throws -> [SelfTestCase] {
        guard @MODULE@.hasGoldenVectors else {
            throw ModelError(description: "@NAME@ was packaged without golden vectors: nothing can be tested")
        }
        return (0..<@C_PREFIX@_case_count()).map { index in
            var report = @C_PREFIX@_case()
            _ = @C_PREFIX@_self_test(model, index, &report)
            return SelfTestCase(
                name: text(report.name), passed: report.passed == 1, error: report.error, limit: report.limit,
                message: text(report.message))
        }
    }

    /// The best classes of outputs that `run` gave.
    public func best(_ outputs: [[Float]], _ count: Int = 3) throws -> [Category] {
        let scores = try result(outputs, kind: 1, otherwise: "gives no scores of classes")
        guard @C_PREFIX@_result_rows() == 1 else {
            throw ModelError(description: "the scores have more than one row: use scores()")
        }
        let found = scores.enumerated().map { item in
            Category(index: item.offset, label: label(item.offset), score: Float(item.element))
        }
        return Array(found.sorted { ($0.score, -$0.index) > ($1.score, -$1.index) }.prefix(max(count, 0)))
    }

    /// Scores of every class as the post-processing contract says, in the order of the labels.
    public func scores(_ outputs: [[Float]]) throws -> [Double] {
        return try result(outputs, kind: 1, otherwise: "gives no scores of classes")
    }

    /// The boxes of outputs that `run` gave, as shares of the model's input.
    public func boxes(_ outputs: [[Float]]) throws -> [Box] {
        return boxes(try result(outputs, kind: 2, otherwise: "gives no boxes"))
    }

    /// The boxes of outputs that `run` gave, in pixels of the image that was fed.
    public func boxes(_ outputs: [[Float]], width: Int, height: Int) throws -> [Box] {
        var rows = try result(outputs, kind: 2, otherwise: "gives no boxes")
        guard @C_PREFIX@_place(Int32(height), Int32(width), &rows, rows.count) == 1 else {
            throw ModelError(description: "the model takes no image of \(width) x \(height) pixels")
        }
        return boxes(rows)
    }

    private func boxes(_ rows: [Double]) -> [Box] {
        return stride(from: 0, to: rows.count, by: 6).map { i in
            Box(
                index: Int(rows[i]), label: label(Int(rows[i])), score: Float(rows[i + 1]), left: Float(rows[i + 2]),
                top: Float(rows[i + 3]), right: Float(rows[i + 4]), bottom: Float(rows[i + 5]))
        }
    }

    private func result(_ outputs: [[Float]], kind: Int32, otherwise: String) throws -> [Double] {
        guard @C_PREFIX@_result_kind() == kind, outputs.count == @C_PREFIX@_output_count() else {
            throw ModelError(description: "the model " + otherwise)
        }
        let copies = outputs.map { values -> UnsafeMutablePointer<Float> in
            let copy = UnsafeMutablePointer<Float>.allocate(capacity: max(values.count, 1))
            copy.initialize(from: values, count: values.count)
            return copy
        }
        defer { copies.forEach { $0.deallocate() } }
        let pointers: [UnsafePointer<Float>?] = copies.map { UnsafePointer($0) }
        var found = [Double](repeating: 0, count: @C_PREFIX@_result_size())
        let total = @C_PREFIX@_result(pointers, &found, found.count)
        return Array(found.prefix(total))
    }

    private func label(_ index: Int) -> String {
        return index < labels.count ? labels[index] : String(index)
    }
}

/// The string in a C array of characters, which Swift sees as a tuple.
private func text<T>(_ characters: T) -> String {
    return withUnsafeBytes(of: characters) { buffer in
        String(decoding: buffer.prefix { $0 != 0 }, as: UTF8.self)
    }
}
