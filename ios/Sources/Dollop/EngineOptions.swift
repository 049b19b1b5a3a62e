// Options for opening a model, and its progress.
import CDollop
import Foundation

/// Options for opening a model. Nil selects the library's default.
public struct EngineOptions: Sendable, Hashable {
    /// Selects a processor.
    public enum Backend: Sendable, Hashable {
        /// The CPU.
        case cpu
        /// A hardware GPU if there is one, else the CPU.
        case auto
        /// The GPU with this ``Device/index``, or the first usable one. Opening fails if there is none.
        case gpu(index: Int? = nil)
    }

    /// The precision of experts.
    public enum Precision: Sendable, Hashable {
        /// The highest stored level if everything fits the budget, else adaptive.
        case `default`
        /// Every expert has this many bits: 2, 3, 4, 6 or 8. Answers do not depend on the memory budget.
        case exact(bits: Int)
        /// As many bits as are worth their bytes: `quality` bits for an expert of average gate weight, and at least `floor`.
        case adaptive(quality: Float = 4, floor: Int = 3)
    }

    /// The memory budget in bytes, for the engine and one chat together; nil for no limit. Experts that do not fit are read when a
    /// token needs them.
    public var memoryBytes: UInt64?
    /// The processor.
    public var backend: Backend
    /// The precision of experts.
    public var precision: Precision
    /// Threads that compute; nil for one per core.
    public var threads: Int?
    /// Positions of the KV cache that the budget must hold; nil for the model's context, at most 4096.
    public var context: Int?
    /// Tokens per prefill chunk; nil for 512 or, if experts are streamed, for what the budget allows, at most 2048.
    public var chunk: Int?
    /// Experts per token, if fewer than the model's; nil for the model's. Changes results.
    public var expertsUsed: Int?
    /// The folder for converted models (GGUF, Hugging Face). Each is converted once. If nil, only Dollop files can be opened.
    public var cacheFolder: URL?
    /// The folder for a GPU's compiled kernels: read on opening, written after new ones were compiled; nil for none.
    public var pipelinesFolder: URL?
    /// Experts to prefetch on a guess of the next layer's choice; 0 for none. Does not change results.
    public var lookahead: Int
    /// Skips an expert that is not resident if its share of the token's gate weights is below this; 0 for never. Changes results.
    public var skipCold: Float
    /// Raises the rank of resident experts by this fraction of the range of their scores; 0 for none. Changes results.
    public var cachePrior: Float
    /// Reads in flight; nil for the number that measures best when the file is opened.
    public var lanes: Int?
    /// Whether to stream experts even if all fit ``memoryBytes``, so that the engine can give memory back later.
    public var alwaysStream: Bool

    /// Creates options. Each parameter sets the property of its name.
    public init(
        memoryBytes: UInt64? = nil, backend: Backend = .cpu, precision: Precision = .default, threads: Int? = nil,
        context: Int? = nil, chunk: Int? = nil, expertsUsed: Int? = nil, cacheFolder: URL? = nil, pipelinesFolder: URL? = nil,
        lookahead: Int = 0, skipCold: Float = 0, cachePrior: Float = 0, lanes: Int? = nil, alwaysStream: Bool = false
    ) {
        self.memoryBytes = memoryBytes
        self.backend = backend
        self.precision = precision
        self.threads = threads
        self.context = context
        self.chunk = chunk
        self.expertsUsed = expertsUsed
        self.cacheFolder = cacheFolder
        self.pipelinesFolder = pipelinesFolder
        self.lookahead = lookahead
        self.skipCold = skipCold
        self.cachePrior = cachePrior
        self.lanes = lanes
        self.alwaysStream = alwaysStream
    }

    /// Returns the options as a C struct, whose texts live in `arena`.
    func native(_ arena: Arena) throws -> dollop_engine_options {
        var o = dollop_engine_options()
        try check(dollop_engine_options_init(&o, MemoryLayout.size(ofValue: o)))
        o.memory_bytes = memoryBytes ?? 0
        switch backend {
        case .cpu: o.backend = UInt32(DOLLOP_BACKEND_CPU)
        case .auto: o.backend = UInt32(DOLLOP_BACKEND_AUTO)
        case .gpu(let index):
            o.backend = UInt32(DOLLOP_BACKEND_GPU)
            o.gpu_index = try number(index ?? -1, "the GPU's index")
        }
        switch precision {
        case .default: o.precision = UInt32(DOLLOP_PRECISION_DEFAULT)
        case .exact(let bits):
            o.precision = UInt32(DOLLOP_PRECISION_EXACT)
            o.level = try number(bits, "bits")
        case .adaptive(let quality, let floor):
            o.precision = UInt32(DOLLOP_PRECISION_ADAPTIVE)
            o.quality = quality
            o.level = try number(floor, "floor")
        }
        o.threads = try number(threads ?? 0, "threads")
        o.context = try number(context ?? 0, "context")
        o.chunk = try number(chunk ?? 0, "chunk")
        o.experts_used = try number(expertsUsed ?? 0, "expertsUsed")
        o.cache_folder = try cacheFolder.map { try arena.path($0, "cacheFolder") }
        o.pipelines_folder = try pipelinesFolder.map { try arena.path($0, "pipelinesFolder") }
        o.lookahead = try number(lookahead, "lookahead")
        o.skip_cold = skipCold
        o.cache_prior = cachePrior
        o.lanes = try number(lanes ?? 0, "lanes")
        o.always_stream = alwaysStream ? 1 : 0
        return o
    }
}

/// The progress of opening a model.
public struct OpenProgress: Sendable, Hashable {
    /// The current stage, for display.
    public let stage: String
    /// Bytes done.
    public let done: UInt64
    /// Bytes in all.
    public let total: UInt64
}

/// Passes progress from the native call that opens a model, and cancellation to it. Lives as long as the call.
final class Opening: Sendable {
    private let cancelled = Protected(false)
    private let report: (@Sendable (OpenProgress) -> Void)?

    init(_ report: (@Sendable (OpenProgress) -> Void)?) { self.report = report }

    /// Makes the native call end at its next progress report.
    func cancel() { cancelled { $0 = true } }
    var isCancelled: Bool { cancelled { $0 } }

    /// Calls `body` with options whose progress callback is connected to this object.
    func with<Result>(_ options: EngineOptions, _ body: (inout dollop_engine_options) throws -> Result) throws -> Result {
        let arena = Arena()
        return try withExtendedLifetime((arena, self)) {
            var native = try options.native(arena)
            native.progress_user_data = Unmanaged.passUnretained(self).toOpaque()
            native.on_progress = { progress, user in
                guard let progress = progress?.pointee, let user else { return 1 }
                let opening = Unmanaged<Opening>.fromOpaque(user).takeUnretainedValue()
                let stage = progress.stage.map { String(cString: $0) } ?? ""
                opening.report?(OpenProgress(stage: stage, done: progress.done, total: progress.total))
                return opening.isCancelled ? 1 : 0
            }
            return try body(&native)
        }
    }
}
