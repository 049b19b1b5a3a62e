// How a model is opened.
import CDollop
import Foundation

/// How a model is opened. What is nil is left to the library.
public struct EngineOptions: Sendable, Hashable {
    /// What computes.
    public enum Backend: Sendable, Hashable {
        /// The processor.
        case cpu
        /// A GPU if there is one that is no software, else the CPU.
        case automatic
        /// The GPU with this ``Device/index``, or the first that can be used; an error if there is none.
        case gpu(index: Int? = nil)
    }

    /// How many bits experts have.
    public enum Precision: Sendable, Hashable {
        /// The highest stored level if everything fits the budget, else adaptive.
        case standard
        /// Every expert at this many bits (2, 3, 4, 6 or 8): answers do not depend on the memory budget.
        case exact(bits: Int)
        /// As many bits as are worth their bytes: `quality` bits for an expert of average weight, and at least `floor`.
        case adaptive(quality: Float = 4, floor: Int = 3)
    }

    /// Bytes that the engine and one chat may take together. Experts that do not fit are read when a token needs them.
    public var memory: UInt64?
    public var backend: Backend
    public var precision: Precision
    /// Threads that compute; nil for one per core.
    public var threads: Int?
    /// Tokens of context that the budget is planned for; nil for the model's, at most 4096.
    public var context: Int?
    /// Tokens of a prompt that pass through the layers together; nil for what the budget allows.
    public var chunk: Int?
    /// Folder that a foreign model (GGUF, Hugging Face) is converted into, once. Without it only Dollop files open.
    public var cacheFolder: URL?
    /// Folder for a GPU's compiled kernels.
    public var pipelinesFolder: URL?
    /// Experts that are read ahead on a guess of the next layer's choice. Changes no result.
    public var lookahead: Int
    /// Reads at a time; nil for as many as prove best.
    public var lanes: Int?
    /// Streams experts even where all of them fit ``memory``, so that the engine can give memory back later.
    public var streamsAlways: Bool

    public init(
        memory: UInt64? = nil, backend: Backend = .cpu, precision: Precision = .standard, threads: Int? = nil,
        context: Int? = nil, chunk: Int? = nil, cacheFolder: URL? = nil, pipelinesFolder: URL? = nil,
        lookahead: Int = 0, lanes: Int? = nil, streamsAlways: Bool = false
    ) {
        self.memory = memory
        self.backend = backend
        self.precision = precision
        self.threads = threads
        self.context = context
        self.chunk = chunk
        self.cacheFolder = cacheFolder
        self.pipelinesFolder = pipelinesFolder
        self.lookahead = lookahead
        self.lanes = lanes
        self.streamsAlways = streamsAlways
    }

    /// The struct of C; its texts live in `arena`.
    func native(_ arena: Arena) throws -> dollop_engine_options {
        var o = dollop_engine_options()
        try check(dollop_engine_options_init(&o, MemoryLayout.size(ofValue: o)))
        o.memory_bytes = memory ?? 0
        switch backend {
        case .cpu: o.backend = UInt32(DOLLOP_BACKEND_CPU)
        case .automatic: o.backend = UInt32(DOLLOP_BACKEND_AUTO)
        case .gpu(let index):
            o.backend = UInt32(DOLLOP_BACKEND_GPU)
            o.gpu_index = try number(index ?? -1, "the GPU's index")
        }
        switch precision {
        case .standard: o.precision = UInt32(DOLLOP_PRECISION_DEFAULT)
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
        o.cache_folder = try cacheFolder.map { try arena.path($0, "cacheFolder") }
        o.pipelines_folder = try pipelinesFolder.map { try arena.path($0, "pipelinesFolder") }
        o.lookahead = try number(lookahead, "lookahead")
        o.lanes = try number(lanes ?? 0, "lanes")
        o.always_stream = streamsAlways ? 1 : 0
        return o
    }
}

/// How far an opening is.
public struct OpenProgress: Sendable, Hashable {
    /// What is being done, for people.
    public let stage: String
    /// Bytes done.
    public let done: UInt64
    /// Bytes in all.
    public let total: UInt64
}

/// What an opening hears of and is cancelled by, while the call lasts.
final class Opening: Sendable {
    private let cancelled = Protected(false)
    private let report: (@Sendable (OpenProgress) -> Void)?

    init(_ report: (@Sendable (OpenProgress) -> Void)?) { self.report = report }

    func cancel() { cancelled { $0 = true } }
    var isCancelled: Bool { cancelled { $0 } }

    /// Calls `body` with options whose callback reaches this.
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
