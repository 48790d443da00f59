// Runs this package on iOS 18 or macOS 15: greedy tokens from token ids and a preprocessed picture.
// Written by scale-export for the files beside it. Add the .mlpackage folders, runtime.json and
// tables.safetensors to an app target; Xcode compiles each package to an .mlmodelc of the same name.
// Token ids and pixels come from the package's tokenizer.json and processor files (swift-transformers reads both).
// Open pictures by `uprightPicture`: phones store photos sideways, and left and above would change places.

@preconcurrency import CoreML
import Foundation
import ImageIO

public enum ScaleExportError: Error {
    case missing(String)
    case unreadablePicture(URL)
    case contextFull
}

public actor ScaleExportModel {
    struct Part { let file: String; let first: Int; let stop: Int }

    static let parts = [
«PARTS»
    ]
    static let prefillTokens = «PREFILL_TOKENS»
    static let cacheSlots = «CACHE_SLOTS»
    static let contextLength = «CONTEXT_LENGTH»
    static let hiddenSize = «HIDDEN_SIZE»
    static let headDim = «HEAD_DIM»
    static let vocabSize = «VOCAB_SIZE»
    static let imageTokenId = «IMAGE_TOKEN_ID»
    static let endTokenIds: Set<Int> = [«EOS_TOKEN_IDS»]
    static let imageHeight = «IMAGE_HEIGHT», imageWidth = «IMAGE_WIDTH»
    static let twoPhase = «TWO_PHASE»
    static let gated = «GATED»
    static let gatesEveryToken = «GATES_EVERY_TOKEN»
    static let quantizedTable = «QUANTIZED_TABLE»

    private struct Runtime: Decodable {
        struct Scalars: Decodable { let attn_scale: [[Float]]; let mlp_scale: [Float] }
        struct Rotary: Decodable { let inv_freq: [Float]; let scale: Float }
        let rotaries: [Rotary]
        let scalars: Scalars?
    }

    private let runtime: Runtime
    private let tables: Tables
    private let vision: MLModel
    private let prefill: [MLModel]
    private let decode: [MLModel]
    private var states: [MLState] = []
    private var filled = 0

    private var strength: Float = 1

    public init(folder: URL) async throws {
        func load(_ file: String, _ function: String?) async throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = «COMPUTE_UNITS»
            configuration.functionName = function
            let url = folder.appendingPathComponent("\(file).mlmodelc")
            return try await MLModel.load(contentsOf: url, configuration: configuration)
        }
        runtime = try JSONDecoder().decode(
            Runtime.self, from: Data(contentsOf: folder.appendingPathComponent("runtime.json")))
        tables = try Tables(folder.appendingPathComponent("tables.safetensors"))
        vision = try await load("vision", nil)
        var chunks: [MLModel] = [], steps: [MLModel] = []
        for part in Self.parts {
            chunks.append(try await load(part.file, "prefill"))
            steps.append(try await load(part.file, "decode"))
        }
        prefill = chunks
        decode = steps
    }

    /// 0 answers as the base model, 1 as ScAle; only packages that hold their scalars as inputs can change it.
    public func setStrength(_ value: Float) { strength = value }

    /// The picture in a file at its full size, turned as its EXIF orientation says, in its own colour values.
    public static func uprightPicture(_ file: URL) throws -> CGImage {
        guard let source = CGImageSourceCreateWithURL(file as CFURL, nil),
            let facts = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = facts[kCGImagePropertyPixelWidth] as? Int,
            let height = facts[kCGImagePropertyPixelHeight] as? Int
        else { throw ScaleExportError.unreadablePicture(file) }
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,  // never the small preview in the file
            kCGImageSourceCreateThumbnailWithTransform: true,  // CGImageSourceCreateImageAtIndex ignores it
            kCGImageSourceThumbnailMaxPixelSize: max(width, height),
        ]
        guard let upright = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw ScaleExportError.unreadablePicture(file)
        }
        return upright
    }

    /// Features of one tile: `pixels` holds 3 · imageHeight · imageWidth values, channel by channel.
    public func features(pixels: [Float]) throws -> [[Float]] {
        let shape = [1, 3, Self.imageHeight, Self.imageWidth]
        let output = try vision.prediction(from: Self.inputs(["pixel_values": Self.array(pixels, shape)]))
        guard let features = output.featureValue(for: "image_features")?.multiArrayValue else {
            throw ScaleExportError.missing("image_features")
        }
        let values = Self.floats(features)
        return stride(from: 0, to: values.count, by: Self.hiddenSize).map {
            Array(values[$0 ..< $0 + Self.hiddenSize])
        }
    }

    /// Greedy token ids after a prompt, until the model ends, `maxNewTokens` or the end of the context.
    /// `imageRows` stand, in order, where the prompt has image tokens.
    public func generate(prompt: [Int], imageRows: [[Float]], maxNewTokens: Int) throws -> [Int] {
        states = prefill.map { $0.makeState() }
        filled = 0
        var rows = imageRows.makeIterator()
        let embeds = try prompt.map { id in
            try (id == Self.imageTokenId ? rows.next() : nil) ?? tables.row(id)
        }
        // In two phases the last prompt token belongs to the folded function, all before it to the base one.
        let prefix = Self.twoPhase ? embeds.count - 1 : embeds.count
        var logits: [Float] = []
        var start = 0
        while start < prefix {
            let stop = min(prefix, start + Self.prefillTokens)
            logits = try run(
                prefill, Array(embeds[start ..< stop]), width: Self.prefillTokens,
                scaled: Self.gatesEveryToken || stop == embeds.count)
            start = stop
        }
        if Self.twoPhase { logits = try run(decode, [embeds[prefix]], width: 1, scaled: true) }
        var tokens: [Int] = []
        while tokens.count < maxNewTokens {
            let next = logits.indices.max { logits[$0] < logits[$1] }!
            if Self.endTokenIds.contains(next) { break }
            tokens.append(next)
            if tokens.count == maxNewTokens || filled == Self.contextLength { break }  // full: keep what there is
            logits = try run(decode, [try tables.row(next)], width: 1, scaled: true)
        }
        return tokens
    }

    /// Logits after the last of `rows`, which take the next cache slots; padded to `width` rows.
    private func run(_ models: [MLModel], _ rows: [[Float]], width: Int, scaled: Bool) throws -> [Float] {
        guard filled + rows.count <= Self.contextLength, filled + width <= Self.cacheSlots else {
            throw ScaleExportError.contextFull
        }
        let padding = [Float](repeating: 0, count: (width - rows.count) * Self.hiddenSize)
        var hidden = try Self.array(rows.flatMap { $0 } + padding, [1, width, Self.hiddenSize])
        let positions = filled ..< filled + width
        var shared: [String: MLMultiArray] = [
            "position": try Self.integer(filled),
            "valid_length": try Self.integer(rows.count),
        ]
        for (index, rotary) in runtime.rotaries.enumerated() {
            let suffix = index == 0 ? "" : "_\(index)", shape = [width, Self.headDim]
            shared["cos" + suffix] = try Self.array(positions.flatMap { turn($0, by: rotary, cos) }, shape)
            shared["sin" + suffix] = try Self.array(positions.flatMap { turn($0, by: rotary, sin) }, shape)
        }
        var logits: [Float] = []
        for (index, part) in Self.parts.enumerated() {
            var feeds = shared
            feeds[index == 0 ? "inputs_embeds" : "hidden_states"] = hidden
            if let scalars = runtime.scalars {
                let weight: Float = scaled ? strength : 0
                let attention = scalars.attn_scale[part.first ..< part.stop].flatMap { $0 }
                let mlp = Array(scalars.mlp_scale[part.first ..< part.stop])
                let heads = scalars.attn_scale[0].count
                feeds["attn_scale"] = try Self.array(
                    attention.map { 1 + weight * ($0 - 1) }, [part.stop - part.first, heads])
                feeds["mlp_scale"] = try Self.array(mlp.map { 1 + weight * ($0 - 1) }, [part.stop - part.first])
            }
            let wanted = models[index].modelDescription.inputDescriptionsByName
            let taken = try Self.inputs(feeds.filter { wanted[$0.key] != nil })
            let output = try models[index].prediction(from: taken, using: states[index])
            if let next = output.featureValue(for: "next_hidden_states")?.multiArrayValue {
                hidden = next
            } else if let found = output.featureValue(for: "logits")?.multiArrayValue {
                logits = Self.floats(found)
            }
        }
        filled += rows.count
        return logits
    }

    private func turn(_ position: Int, by rotary: Runtime.Rotary, _ function: (Float) -> Float) -> [Float] {
        let half = rotary.inv_freq.map { function(Float(position) * $0) * rotary.scale }
        return half + half
    }

    private static func inputs(_ arrays: [String: MLMultiArray]) throws -> MLDictionaryFeatureProvider {
        try MLDictionaryFeatureProvider(dictionary: arrays.mapValues { MLFeatureValue(multiArray: $0) })
    }

    private static func array(_ values: [Float], _ shape: [Int]) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .float16)
        array.withUnsafeMutableBufferPointer(ofType: Float16.self) { buffer, _ in
            for (index, value) in values.enumerated() { buffer[index] = Float16(value) }
        }
        return array
    }

    private static func integer(_ value: Int) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: [1], dataType: .int32)
        array[0] = NSNumber(value: value)
        return array
    }

    private static func floats(_ array: MLMultiArray) -> [Float] {
        MLShapedArray<Float>(converting: array).scalars  // in order, whatever the strides of the output
    }
}

/// `tables.safetensors`, memory-mapped: eight bytes of header length, a JSON header, then the tensors.
private struct Tables {
    private struct Tensor: Decodable { let dtype: String; let shape: [Int]; let data_offsets: [Int] }

    private let data: Data
    private let start: Int
    private let header: [String: Tensor]

    init(_ url: URL) throws {
        data = try Data(contentsOf: url, options: .alwaysMapped)
        let length = Int(data.prefix(8).withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) })
        start = 8 + length
        header = try JSONDecoder().decode([String: Tensor].self, from: data.subdata(in: 8 ..< start))
    }

    /// One row of the embedding.
    func row(_ id: Int) throws -> [Float] {
        guard ScaleExportModel.quantizedTable else { return try read("embedding", id, Float16.self).map(Float.init) }
        let codes = try read("embedding.codes", id, Int8.self)
        let scales = try read("embedding.scales", id, Float16.self)
        let block = codes.count / scales.count
        return codes.enumerated().map { Float($1) * Float(scales[$0 / block]) }
    }

    private func read<Value>(_ name: String, _ row: Int, _ type: Value.Type) throws -> [Value] {
        guard let tensor = header[name] else { throw ScaleExportError.missing(name) }
        let width = tensor.shape[1], size = MemoryLayout<Value>.size
        let offset = start + tensor.data_offsets[0] + row * width * size
        return data.withUnsafeBytes { bytes in
            (0 ..< width).map { bytes.loadUnaligned(fromByteOffset: offset + $0 * size, as: Value.self) }
        }
    }
}
