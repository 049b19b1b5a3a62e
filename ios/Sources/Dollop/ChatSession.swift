// A conversation.
import CDollop
import Foundation

/// How a conversation is made.
public struct ChatOptions: Sendable, Hashable {
    /// What a conversation that outgrows the context does.
    public enum Overflow: Sendable, Hashable {
        /// Forget the oldest turns; the system prompt stays.
        case slide
        /// Throw ``DollopError/Status/contextFull``.
        case fail
    }

    /// System prompt; nil for the template's own.
    public var system: String?
    /// Positions of the KV cache; nil for what the engine's budget was planned for.
    public var context: Int?
    public var overflow: Overflow

    public init(system: String? = nil, context: Int? = nil, overflow: Overflow = .slide) {
        self.system = system
        self.context = context
        self.overflow = overflow
    }
}

/// A conversation with a model.
///
/// One answer at a time: a second one meanwhile fails with ``DollopError/Status/busy``, as does every call that reads or changes
/// the conversation. Calls of C that block run on threads of their own.
///
/// ``cancel()`` and ``close()`` may come at any time, from any thread. A chat that is released while its answer is consumed lives
/// until the answer ends.
public actor ChatSession {
    private nonisolated let stage: Stage

    /// Begins a conversation. Its memory is allocated here.
    public init(_ engine: Engine, options: ChatOptions = ChatOptions()) async throws {
        stage = try await Self.stage(engine) { engine, to in
            var o = dollop_chat_options()
            try check(dollop_chat_options_init(&o, MemoryLayout.size(ofValue: o)))
            let arena = Arena()
            try withExtendedLifetime(arena) {
                o.system = try arena.optionalText(options.system, "system")
                o.context = try number(options.context ?? 0, "context")
                o.overflow = UInt32(options.overflow == .slide ? DOLLOP_OVERFLOW_SLIDE : DOLLOP_OVERFLOW_ERROR)
                try check(dollop_chat_new(engine, &o, to))
            }
        }
    }

    /// Restores a conversation that ``save(to:)`` wrote. It goes on as if it had never stopped, and is not computed again.
    ///
    /// - Throws: ``DollopError`` for a damaged file, or one of another model or precision; the message says which.
    public init(_ engine: Engine, contentsOf url: URL, context: Int? = nil) async throws {
        stage = try await Self.stage(engine) { engine, to in
            var o = dollop_session_options()
            try check(dollop_session_options_init(&o, MemoryLayout.size(ofValue: o)))
            o.context = try number(context ?? 0, "context")
            try withPath(url) { try check(dollop_chat_load(engine, $0, &o, to)) }
        }
    }

    private static func stage(
        _ engine: Engine, _ make: @escaping @Sendable (OpaquePointer, UnsafeMutablePointer<OpaquePointer?>) throws -> Void
    ) async throws -> Stage {
        try await onThread("chat") { [handle = engine.handle] in
            let sampling = try Sampling(of: handle)
            let chat = try Handle("chat", free: { _ = dollop_chat_free($0) }) { to in try make(handle.get(), to) }
            return Stage(handle: chat, sampling: sampling) { _ = dollop_chat_cancel($0) }
        }
    }

    /// Says `message` as the user and generates the answer.
    ///
    /// Generation begins at once and goes on while the stream is consumed: it waits when 16 events are unread. It stops when the
    /// consuming task is cancelled, or the stream is released, as by a `break` out of the loop; what was generated so far stays
    /// in the conversation. The last event is ``Event/finished(_:)``. The stream has one consumer.
    ///
    /// A cancelled task's loop ends, without an error, when the generation has stopped.
    public nonisolated func send(
        _ message: String, options: GenerationOptions = GenerationOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { chat, options, outcome, arena in
            dollop_chat_send(chat, try arena.text(message, "the message"), options, nil, outcome)
        }
    }

    /// Takes the last answer back and answers the same message again; otherwise as ``send(_:options:)``.
    public nonisolated func regenerate(
        options: GenerationOptions = GenerationOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { chat, options, outcome, _ in dollop_chat_regenerate(chat, options, nil, outcome) }
    }

    /// Says `message` and returns the whole answer. A cancelled task throws `CancellationError`.
    public func reply(to message: String, options: GenerationOptions = GenerationOptions()) async throws -> Reply {
        var text = ""
        for try await event in send(message, options: options) {
            text += event.text ?? ""
            if case .finished(let outcome) = event { return Reply(text: text, outcome: outcome) }
        }
        throw CancellationError()
    }

    /// The conversation, the system prompt included.
    public func messages() async throws -> [Message] {
        try await stage.call("messages") { chat in
            try takeJSON([Message].self) { try check(dollop_chat_messages_json(chat, $0)) }
        }
    }

    /// Replaces the conversation, the system prompt included.
    public func setMessages(_ messages: [Message]) async throws {
        try await stage.call("messages") { chat in
            let arena = Arena()
            try withExtendedLifetime(arena) {
                try check(dollop_chat_set_messages(chat, arena.messages(messages), messages.count))
            }
        }
    }

    /// Sets what the template sees beside the messages, such as `{"enable_thinking": false}`: a JSON object, in place of what was
    /// set before.
    public func setVariables(json: String) async throws {
        try await stage.call("variables") { chat in
            let arena = Arena()
            try withExtendedLifetime(arena) {
                try check(dollop_chat_set_variables(chat, arena.text(json, "the variables")))
            }
        }
    }

    /// Sets the time for templates that say it.
    public func setTime(_ date: Date, in zone: TimeZone = .current) async throws {
        // As if the local clock showed UTC. A date before 1970 becomes its beginning.
        let seconds = date.timeIntervalSince1970 + Double(zone.secondsFromGMT(for: date))
        try await stage.call("time") { chat in
            try check(dollop_chat_set_time(chat, UInt64(exactly: max(0, seconds).rounded(.down)) ?? .max))
        }
    }

    /// Forgets the conversation but not the system prompt.
    public func reset() async throws {
        try await stage.call("reset") { try check(dollop_chat_reset($0)) }
    }

    /// How full the context is.
    public func usage() async throws -> ContextUsage {
        try await stage.call("usage") { chat in
            var info = dollop_session_info()
            try check(dollop_session_info_init(&info, MemoryLayout.size(ofValue: info)))
            try check(dollop_chat_get(chat, &info))
            return ContextUsage(
                capacity: Int(info.context), tokens: Int(info.tokens), processed: Int(info.processed_tokens))
        }
    }

    /// Writes the conversation with its KV cache to a file, from which ``init(_:contentsOf:context:)`` restores it.
    ///
    /// An older file of that name stays until the new one is whole. After ``cancel()`` this waits for the answer to end.
    /// - Returns: the bytes written.
    @discardableResult
    public func save(to url: URL) async throws -> UInt64 {
        try await stage.call("save") { chat in
            var bytes: UInt64 = 0
            try withPath(url) { try check(dollop_chat_save(chat, $0, &bytes)) }
            return bytes
        }
    }

    /// Stops the answer that is generated now, waits for its end and saves: what an app does on its way to the background.
    @discardableResult
    public func stopAndSave(to url: URL) async throws -> UInt64 {
        cancel()
        return try await save(to: url)
    }

    /// Stops the answer that is generated now; its stream delivers what was generated and ends with ``Event/finished(_:)``.
    public nonisolated func cancel() { stage.stop() }

    /// Stops the answer that is generated now, and closes the chat. Any number of times; releasing the chat does the same once
    /// its answer has ended.
    public nonisolated func close() { stage.close() }
}

extension Engine {
    /// Begins a conversation.
    public func chat(options: ChatOptions = ChatOptions()) async throws -> ChatSession {
        try await ChatSession(self, options: options)
    }
}
