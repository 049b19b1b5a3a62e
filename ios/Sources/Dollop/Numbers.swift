// Reports on a model, its memory, its work and the devices: `Codable` types for the JSON of the C functions.
import CDollop

/// A model's names, dimensions and sizes.
public struct ModelInfo: Codable, Sendable, Hashable {
    /// The model's name.
    public let name: String
    /// The model's architecture, such as "qwen2moe".
    public let architecture: String
    /// Transformer blocks.
    public let layers: Int
    /// Experts per routed layer; 0 for a dense model.
    public let experts: Int
    /// Experts per token.
    public let expertsUsed: Int
    /// Hidden width of a routed expert; 0 for a dense model.
    public let expertWidth: Int
    /// The longest context that the model was trained for, in tokens.
    public let context: Int
    /// Tokens in the vocabulary. Token ids are below this.
    public let vocab: Int
    /// The token at the beginning of a text; nil if there is none.
    public let bos: TokenID?
    /// The token at the end of a text; nil if there is none.
    public let eos: TokenID?
    /// Weights in all matrices.
    public let parameters: UInt64
    /// Weights in the matrices that one token uses.
    public let activeParameters: UInt64
    /// Bytes of all weights at the level in use.
    public let bytes: UInt64
    /// Bytes of the weights that one token reads, at the level in use.
    public let activeBytes: UInt64
    /// How the model runs, for display: residency, precision, level.
    public let mode: String
    /// The processor, for display.
    public let backend: String
    /// Why the CPU computes although a GPU was preferred; nil if it was not.
    public let note: String?
    /// Threads that compute.
    public let threads: Int
    /// Whether the model has a chat template.
    public let hasChatTemplate: Bool
}

/// How a memory budget is spent, in bytes.
public struct Plan: Codable, Sendable, Hashable {
    /// The memory budget; nil for no limit.
    public let budget: UInt64?
    /// The sum of all parts.
    public let totalBytes: UInt64
    /// The smallest budget that works.
    public let smallestBytes: UInt64
    /// Whether a GPU computes.
    public let gpu: Bool
    /// Whether experts are streamed. Otherwise all are resident.
    public let streaming: Bool
    /// Whether experts are resident at fewer bits than are stored.
    public let lowered: Bool
    /// Positions of the planned KV cache.
    public let context: Int
    /// Tokens per prefill chunk.
    public let chunk: Int
    /// Program, tokenizer and tables.
    public let overheadBytes: UInt64
    /// Weights that every token uses.
    public let denseBytes: UInt64
    /// KV cache of one chat.
    public let kvBytes: UInt64
    /// Activations and other scratch of one chat.
    public let scratchBytes: UInt64
    /// Memory for experts: the cache, or all of them.
    public let expertBytes: UInt64
    /// Host memory through which streamed experts pass on their way to a GPU.
    public let stagingBytes: UInt64
    /// What each stored level would mean under this plan, lowest first.
    public let levels: [PlanLevel]
}

/// What one level would mean under a plan.
public struct PlanLevel: Codable, Sendable, Hashable {
    /// Bits of the level.
    public let bits: Int
    /// Bytes of all experts at this level.
    public let expertBytes: UInt64
    /// The share of the experts' bytes that the memory holds, from 0 to 1.
    public let resident: Double
    /// Bytes of the experts that one token uses.
    public let touchedBytes: UInt64
    /// Bytes that one token reads if all experts are equally likely. Real routing reads less.
    public let readBytes: UInt64
}

/// Counters of an engine since it was opened.
public struct Stats: Codable, Sendable, Hashable {
    /// Mean bits of the computed experts, weighted by gate; nil if all experts are resident.
    public let meanBits: Double?
    /// The share of the needed planes that were resident, from 0 to 1; nil if all experts are resident.
    public let hitRate: Double?
    /// Counters of streaming; nil unless experts are streamed or refined.
    public let stream: StreamStats?
    /// Counters of the GPU; nil if only the CPU has computed.
    public let gpu: GPUStats?
    /// Choices of the router that were dropped.
    public let dropped: UInt64
    /// Choices of the router that were redirected to another expert.
    public let redirected: UInt64
}

/// Counters of streaming. A plane adds one or two bits to an expert.
public struct StreamStats: Codable, Sendable, Hashable {
    /// Planes that experts needed, lowest plane first.
    public let planesWanted: [UInt64]
    /// Needed planes that were resident, lowest plane first.
    public let planesHit: [UInt64]
    /// Bytes read because a layer needed them.
    public let bytesWanted: UInt64
    /// Bytes prefetched.
    public let bytesAhead: UInt64
    /// Bytes read for embedding rows that are not held in memory.
    public let bytesEmbedding: UInt64
    /// Planes above the base that were evicted.
    public let downgrades: UInt64
    /// Base planes that were evicted.
    public let evictions: UInt64
    /// Reads that were repeated.
    public let retries: UInt64
    /// How often the cache was resized.
    public let resizes: UInt64
    /// Bytes that resizes gave back to the system.
    public let bytesGivenBack: UInt64
    /// Nanoseconds spent computing experts.
    public let computeNs: UInt64
    /// Nanoseconds that computation waited for reads.
    public let waitNs: UInt64
}

/// Counters of a GPU.
public struct GPUStats: Codable, Sendable, Hashable {
    /// Kernels launched.
    public let dispatches: UInt64
    /// Waits for a result.
    public let readbacks: UInt64
    /// Bytes allocated on the GPU now.
    public let heldBytes: UInt64
}

/// A GPU of this system, hardware or software.
public struct Device: Codable, Sendable, Hashable {
    /// The index of ``EngineOptions/Backend/gpu(index:)`` that selects it.
    public let index: Int
    /// The GPU's name.
    public let name: String
    /// Vulkan, Metal or Dx12.
    public let api: String
    /// The driver and its version.
    public let driver: String
    /// Whether this is a software GPU, which the CPU emulates.
    public let software: Bool
    /// The features it lacks to compute models; nil if it can.
    public let missing: String?
    /// The largest buffer that a kernel can read, in bytes.
    public let maxBindingBytes: UInt64
}

/// The index of a token in the model's vocabulary.
public typealias TokenID = UInt32

/// How full the context of a chat or session is, in tokens.
public struct SessionInfo: Sendable, Hashable {
    /// Positions of the KV cache.
    public let context: Int
    /// Tokens in it.
    public let tokens: Int
    /// Tokens computed since the chat or session was created. Reused tokens do not count.
    public let processedTokens: Int

    init(_ info: dollop_session_info) {
        (context, tokens, processedTokens) = (Int(info.context), Int(info.tokens), Int(info.processed_tokens))
    }
}
