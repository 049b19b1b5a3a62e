// Sequences of tokens, without messages or a chat template.
import CDollop
import Foundation

/// A sequence of tokens with its KV cache, to continue text without a chat template.
///
/// Like a ``Chat``, it runs one generation at a time, and ``cancel()`` and ``close()`` may be called at any time.
public actor Session {
    private nonisolated let stage: Stage
    private nonisolated let vocab: Int

    /// Creates an empty session and allocates its memory.
    ///
    /// - Parameters:
    ///   - engine: the model.
    ///   - context: positions of the KV cache; nil for the number that the engine's budget was planned for.
    ///   - chunk: tokens per prefill chunk; nil for the number that the engine's budget was planned for. From 32 on, results do not
    ///     depend on it.
    public init(_ engine: Engine, context: Int? = nil, chunk: Int? = nil) async throws {
        try await self.init(of: engine.handle, vocab: try engine.info.vocab) { engine, to in
            var o = try sessionOptions(context, chunk)
            try check(dollop_session_new(engine, &o, to))
        }
    }

    /// Restores a session that ``save(to:)`` wrote. Its logits are bit-identical to those of a session that never stopped.
    ///
    /// - Throws: ``DollopError`` for a damaged file, or a file of another model or precision; the message says which.
    public init(_ engine: Engine, contentsOf url: URL, context: Int? = nil, chunk: Int? = nil) async throws {
        try await self.init(of: engine.handle, vocab: try engine.info.vocab) { engine, to in
            var o = try sessionOptions(context, chunk)
            try withPath(url) { try check(dollop_session_load(engine, $0, &o, to)) }
        }
    }

    private init(
        of engine: Handle, vocab: Int,
        _ make: @escaping @Sendable (OpaquePointer, UnsafeMutablePointer<OpaquePointer?>) throws -> Void
    ) async throws {
        let stage = try await onThread("session") {
            let sampling = try Sampling(of: engine)
            return try Self.stage(sampling) { to in try make(engine.get(), to) }
        }
        self.init(stage, vocab)
    }

    private init(_ stage: Stage, _ vocab: Int) {
        self.stage = stage
        self.vocab = vocab
    }

    private static func stage(
        _ sampling: Sampling, _ make: (UnsafeMutablePointer<OpaquePointer?>) throws -> Void
    ) throws -> Stage {
        let session = try Handle("session", free: { _ = dollop_session_free($0) }, make: make)
        return Stage(handle: session, sampling: sampling) { _ = dollop_session_cancel($0) }
    }

    /// Continues a text. The tokens that the model expects at the beginning of a text are put first.
    ///
    /// The prompt's beginning is reused as far as it is in the KV cache; the rest of the cache is dropped. Otherwise the same as
    /// ``Chat/send(_:options:)``.
    public nonisolated func complete(
        _ prompt: String, options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { session, options, outcome, arena in
            dollop_session_complete(session, try arena.text(prompt, "the prompt"), options, nil, outcome)
        }
    }

    /// Continues a prompt given as token ids, to which nothing is added. Otherwise the same as ``complete(_:options:)``.
    public nonisolated func generate(
        _ prompt: [TokenID], options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { session, options, outcome, _ in
            dollop_session_generate(session, prompt, prompt.count, options, nil, outcome)
        }
    }

    /// Appends tokens and returns the logits of the token after them: unnormalised log probabilities, indexed by token id.
    ///
    /// - Throws: ``DollopError/Status/invalid`` for an id outside the vocabulary. After a failure, the session is unchanged.
    public func logits(after ids: [TokenID]) async throws -> [Float] {
        try await stage.call("logits") { [vocab] session in
            try [Float](unsafeUninitializedCapacity: vocab) { logits, count in
                try check(dollop_session_logits(session, ids, ids.count, logits.baseAddress, vocab))
                count = vocab
            }
        }
    }

    /// Returns the tokens in the KV cache.
    public func tokens() async throws -> [TokenID] {
        try await stage.call("tokens") { session in
            var count = 0
            try check(dollop_session_tokens(session, nil, 0, &count))
            return try [TokenID](unsafeUninitializedCapacity: count) { ids, written in
                try check(dollop_session_tokens(session, ids.baseAddress, count, &written))
            }
        }
    }

    /// Drops all but the first `count` tokens. Has no effect if there are fewer.
    ///
    /// - Throws: ``DollopError/Status/invalid`` if `count` is negative.
    public func rewind(to count: Int) async throws {
        let count: UInt = try number(count, "count")
        try await stage.call("rewind") { try check(dollop_session_rewind($0, Int(count))) }
    }

    /// Returns how full the context is.
    public func info() async throws -> SessionInfo {
        try await stage.call("info") { session in
            var info = dollop_session_info()
            try check(dollop_session_info_init(&info, MemoryLayout.size(ofValue: info)))
            try check(dollop_session_get(session, &info))
            return SessionInfo(info)
        }
    }

    /// Returns a second session that begins with the tokens of this one. Nothing is computed again.
    public func fork() async throws -> Session {
        let fork = try await stage.call("fork") { [sampling = stage.sampling] session in
            try Self.stage(sampling) { try check(dollop_session_fork(session, $0)) }
        }
        return Session(fork, vocab)
    }

    /// Saves the session with its KV cache to a file. ``init(_:contentsOf:context:chunk:)`` restores it.
    /// - Returns: the file's size in bytes.
    @discardableResult
    public func save(to url: URL) async throws -> UInt64 {
        try await stage.call("save") { session in
            var bytes: UInt64 = 0
            try withPath(url) { try check(dollop_session_save(session, $0, &bytes)) }
            return bytes
        }
    }

    /// Stops the current generation, if any. Its stream delivers what was generated and ends with ``Event/done(_:)``.
    public nonisolated func cancel() { stage.stop() }

    /// Stops the current generation and closes the session. Further calls have no effect.
    public nonisolated func close() { stage.close() }
}

/// Returns the options for creating or restoring a session as a C struct.
func sessionOptions(_ context: Int?, _ chunk: Int?) throws -> dollop_session_options {
    var o = dollop_session_options()
    try check(dollop_session_options_init(&o, MemoryLayout.size(ofValue: o)))
    o.context = try number(context ?? 0, "context")
    o.chunk = try number(chunk ?? 0, "chunk")
    return o
}
