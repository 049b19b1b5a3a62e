// What the library says of a model, its memory, its work and the devices: the C functions' JSON as `Codable` values.

/// A model in names and numbers.
public struct ModelInfo: Codable, Sendable, Hashable {
    public let name: String
    public let architecture: String
    /// Transformer blocks.
    public let layers: Int
    /// Experts per routed layer; 0 for a dense model.
    public let experts: Int
    /// Experts per token.
    public let expertsUsed: Int
    /// Hidden width of a routed expert; 0 for a dense model.
    public let expertWidth: Int
    /// Longest context that the model was made for, in tokens.
    public let context: Int
    /// Token ids are below this.
    public let vocab: Int
    /// Token at the beginning of a text.
    public let bos: TokenID?
    /// Token at the end of a text.
    public let eos: TokenID?
    /// Weights in matrices, and of those what one token passes through.
    public let parameters: UInt64
    /// See ``parameters``.
    public let activeParameters: UInt64
    /// Bytes of all weights at the level in use.
    public let bytes: UInt64
    /// Bytes that a token reads.
    public let activeBytes: UInt64
    /// How it runs, for people: residency, precision, level.
    public let mode: String
    /// What it runs on, for people.
    public let backend: String
    /// Why the CPU computes where a GPU would have been preferred.
    public let note: String?
    /// Threads that compute.
    public let threads: Int
    public let hasChatTemplate: Bool
}

/// How a memory budget is spent, in bytes.
public struct MemoryPlan: Codable, Sendable, Hashable {
    /// What may be used; nil for no limit.
    public let budget: UInt64?
    /// Everything together.
    public let totalBytes: UInt64
    /// The smallest budget that works.
    public let smallestBytes: UInt64
    /// Whether a GPU computes.
    public let gpu: Bool
    /// Whether experts are streamed; otherwise all are resident.
    public let streaming: Bool
    /// Whether experts are resident at fewer bits than are stored.
    public let lowered: Bool
    /// Positions of the KV cache.
    public let context: Int
    /// Tokens of a prompt that pass through the layers together.
    public let chunk: Int
    /// Program, tokenizer and tables.
    public let overheadBytes: UInt64
    /// Weights that every token uses.
    public let denseBytes: UInt64
    /// KV cache of one chat.
    public let kvBytes: UInt64
    /// Activations and other scratch of one chat.
    public let scratchBytes: UInt64
    /// Experts: all of them, or the cache.
    public let expertBytes: UInt64
    /// Memory that streamed experts pass through on their way to a GPU.
    public let stagingBytes: UInt64
    /// What the experts at each stored level would mean, lowest first.
    public let levels: [Level]

    /// Experts at one level under a plan.
    public struct Level: Codable, Sendable, Hashable {
        public let bits: Int
        /// Bytes of all experts.
        public let expertBytes: UInt64
        /// The part of the experts that the memory holds, 0 to 1.
        public let resident: Double
        /// Expert bytes that a token touches.
        public let touchedBytes: UInt64
        /// Bytes that a token reads if all experts are equally likely.
        public let readBytes: UInt64
    }
}

/// What an engine has done since it was opened.
public struct Statistics: Codable, Sendable, Hashable {
    /// Mean bits of the experts computed, by gate mass; nil where all experts are resident.
    public let meanBits: Double?
    /// The part of the planes wanted that was resident; nil where all experts are.
    public let hitRate: Double?
    /// Streaming, where experts are streamed or refined.
    public let stream: Stream?
    /// A GPU, where one computes or did.
    public let gpu: GPU?
    /// Choices of the router that were dropped, and those that were redirected.
    public let dropped: UInt64
    /// See ``dropped``.
    public let redirected: UInt64

    /// Counters of streaming. A plane is a part of an expert that adds bits to it.
    public struct Stream: Codable, Sendable, Hashable {
        /// Planes wanted, lowest first, and of those, resident.
        public let planesWanted: [UInt64]
        /// See ``planesWanted``.
        public let planesHit: [UInt64]
        /// Bytes read because they were wanted.
        public let bytesWanted: UInt64
        /// Bytes read ahead of need.
        public let bytesAhead: UInt64
        /// Planes given up above the base.
        public let downgrades: UInt64
        /// Bases given up.
        public let evictions: UInt64
        /// Reads that were repeated.
        public let retries: UInt64
        /// Times that the cache was made smaller or larger.
        public let resizes: UInt64
        /// Bytes that went back to the system by that.
        public let bytesGivenBack: UInt64
        /// Nanoseconds spent computing experts.
        public let computeNs: UInt64
        /// Nanoseconds in which computing waited for reads.
        public let waitNs: UInt64
    }

    /// Counters of a GPU.
    public struct GPU: Codable, Sendable, Hashable {
        /// Kernels launched.
        public let dispatches: UInt64
        /// Waits for a result.
        public let readbacks: UInt64
        /// Bytes allocated on it now.
        public let heldBytes: UInt64
    }
}

/// A GPU, or what poses as one.
public struct Device: Codable, Sendable, Hashable {
    /// What ``EngineOptions/Backend/gpu(index:)`` names it by.
    public let index: Int
    public let name: String
    /// Vulkan, Metal or Dx12.
    public let api: String
    /// The driver and its version.
    public let driver: String
    /// Whether the processor does the work.
    public let software: Bool
    /// What it lacks to run kernels; nil if it can.
    public let missing: String?
    /// The largest buffer that a kernel can read, in bytes.
    public let maxBindingBytes: UInt64
}

/// A token's number in the model's vocabulary.
public typealias TokenID = UInt32

/// How full a chat's context is.
public struct ContextUsage: Sendable, Hashable {
    /// Positions of the KV cache.
    public let capacity: Int
    /// Tokens in it.
    public let tokens: Int
    /// Tokens computed since the chat was made: those that were found in the cache do not count.
    public let processed: Int
}
