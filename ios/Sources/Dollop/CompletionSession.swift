// A timeline of tokens, without messages or a template.
import CDollop
import Foundation

/// A timeline of a model: tokens and their KV cache, for text that is continued rather than answered.
///
/// As a ``ChatSession``, it does one call at a time, and ``cancel()`` and ``close()`` may come at any time.
public actor CompletionSession {
    private nonisolated let stage: Stage
    private nonisolated let vocab: Int

    /// Makes an empty timeline; its memory is allocated here.
    public init(_ engine: Engine, context: Int? = nil) async throws {
        try await self.init(of: engine.handle, vocab: try engine.info.vocab) { engine, to in
            var o = try Self.options(context)
            try check(dollop_session_new(engine, &o, to))
        }
    }

    /// Restores a timeline that ``save(to:)`` wrote. Its logits are bit-identical to those of one that never stopped.
    public init(_ engine: Engine, contentsOf url: URL, context: Int? = nil) async throws {
        try await self.init(of: engine.handle, vocab: try engine.info.vocab) { engine, to in
            var o = try Self.options(context)
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

    private static func options(_ context: Int?) throws -> dollop_session_options {
        var o = dollop_session_options()
        try check(dollop_session_options_init(&o, MemoryLayout.size(ofValue: o)))
        o.context = try number(context ?? 0, "context")
        return o
    }

    /// Continues a text, in front of which come the tokens that the model wants at the beginning of one.
    ///
    /// What the cache has of the text's beginning is reused; the rest of the cache is forgotten. Otherwise as
    /// ``ChatSession/send(_:options:)``.
    public nonisolated func complete(
        _ prompt: String, options: GenerationOptions = GenerationOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { session, options, outcome, arena in
            dollop_session_complete(session, try arena.text(prompt, "the prompt"), options, nil, outcome)
        }
    }

    /// Continues tokens, with nothing put in front of them.
    public nonisolated func complete(
        _ prompt: [TokenID], options: GenerationOptions = GenerationOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { session, options, outcome, _ in
            dollop_session_generate(session, prompt, prompt.count, options, nil, outcome)
        }
    }

    /// Appends tokens to the timeline; the logits of the token after them: unnormalised log probabilities, by token.
    public func logits(after ids: [TokenID]) async throws -> [Float] {
        try await stage.call("logits") { [vocab] session in
            try [Float](unsafeUninitializedCapacity: vocab) { logits, count in
                try check(dollop_session_logits(session, ids, ids.count, logits.baseAddress, vocab))
                count = vocab
            }
        }
    }

    /// The tokens of the timeline.
    public func tokens() async throws -> [TokenID] {
        try await stage.call("tokens") { session in
            var count = 0
            try check(dollop_session_tokens(session, nil, 0, &count))
            return try [TokenID](unsafeUninitializedCapacity: count) { ids, written in
                try check(dollop_session_tokens(session, ids.baseAddress, count, &written))
            }
        }
    }

    /// Forgets all but the first `count` tokens.
    public func rewind(to count: Int) async throws {
        let count: UInt = try number(count, "count")
        try await stage.call("rewind") { try check(dollop_session_rewind($0, Int(count))) }
    }

    /// A second timeline with the same tokens, which goes its own way.
    public func fork() async throws -> CompletionSession {
        let fork = try await stage.call("fork") { [sampling = stage.sampling] session in
            try Self.stage(sampling) { try check(dollop_session_fork(session, $0)) }
        }
        return CompletionSession(fork, vocab)
    }

    /// Writes the timeline with its KV cache to a file, from which ``init(_:contentsOf:context:)`` restores it.
    /// - Returns: the bytes written.
    @discardableResult
    public func save(to url: URL) async throws -> UInt64 {
        try await stage.call("save") { session in
            var bytes: UInt64 = 0
            try withPath(url) { try check(dollop_session_save(session, $0, &bytes)) }
            return bytes
        }
    }

    /// Stops what is generated now; its stream delivers what was generated and ends with ``Event/finished(_:)``.
    public nonisolated func cancel() { stage.stop() }

    /// Stops what is generated now, and closes the timeline. Any number of times.
    public nonisolated func close() { stage.close() }
}
