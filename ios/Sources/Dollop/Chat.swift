// Conversations.
import CDollop
import Foundation

/// Options for creating a chat.
public struct ChatOptions: Sendable, Hashable {
    /// What happens if the conversation no longer fits the context.
    public enum Overflow: Sendable, Hashable {
        /// A prompt that does not fit throws ``DollopError/Status/contextFull``. An answer ends when the context is full.
        case error
        /// The oldest turns are dropped; the system prompt stays.
        case slide
    }

    /// The system prompt; nil for the template's default.
    public var system: String?
    /// Positions of the KV cache; nil for the number that the engine's budget was planned for.
    public var context: Int?
    /// Tokens per prefill chunk; nil for the number that the engine's budget was planned for.
    public var chunk: Int?
    /// What happens if the conversation no longer fits the context.
    public var overflow: Overflow

    /// Creates options. Each parameter sets the property of its name.
    public init(system: String? = nil, context: Int? = nil, chunk: Int? = nil, overflow: Overflow = .slide) {
        self.system = system
        self.context = context
        self.chunk = chunk
        self.overflow = overflow
    }
}

/// A conversation with a model.
///
/// A chat generates one answer at a time. Until it ends, a second answer fails with ``DollopError/Status/busy``, and so does every
/// call that reads or changes the conversation. Blocking native calls run on threads of their own.
///
/// ``cancel()`` and ``close()`` may be called at any time, from any thread. A chat that is released while its answer is consumed
/// lives until the answer ends.
public actor Chat {
    private nonisolated let stage: Stage

    /// Creates a conversation and allocates its memory.
    ///
    /// - Throws: ``DollopError/Status/invalid`` if the context is longer than the budget or the model allows.
    public init(_ engine: Engine, options: ChatOptions = ChatOptions()) async throws {
        stage = try await Self.stage(engine) { engine, to in
            var o = dollop_chat_options()
            try check(dollop_chat_options_init(&o, MemoryLayout.size(ofValue: o)))
            let arena = Arena()
            try withExtendedLifetime(arena) {
                o.system = try arena.optionalText(options.system, "system")
                o.context = try number(options.context ?? 0, "context")
                o.chunk = try number(options.chunk ?? 0, "chunk")
                o.overflow = UInt32(options.overflow == .slide ? DOLLOP_OVERFLOW_SLIDE : DOLLOP_OVERFLOW_ERROR)
                try check(dollop_chat_new(engine, &o, to))
            }
        }
    }

    /// Restores a conversation that ``save(to:)`` wrote. It continues as if it had never stopped. Nothing is computed again.
    ///
    /// - Throws: ``DollopError`` for a damaged file, or a file of another model or precision; the message says which.
    public init(_ engine: Engine, contentsOf url: URL, context: Int? = nil, chunk: Int? = nil) async throws {
        stage = try await Self.stage(engine) { engine, to in
            var o = try sessionOptions(context, chunk)
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

    /// Adds `message` as the user's message, and generates the answer.
    ///
    /// Generation begins at once, and waits while 16 events are unread. The last event is ``Event/done(_:)``. The stream has
    /// one consumer.
    ///
    /// Generation stops when the consuming task is cancelled, or when the stream is released, as by a `break` out of the loop. The
    /// text generated so far stays in the conversation. If the task is cancelled, its loop ends without an error, when the
    /// generation has stopped.
    ///
    /// The stream throws ``DollopError``. The conversation is then unchanged.
    public nonisolated func send(
        _ message: String, options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { chat, options, outcome, arena in
            dollop_chat_send(chat, try arena.text(message, "the message"), options, nil, outcome)
        }
    }

    /// Discards the last answer and generates another to the same message. Otherwise the same as ``send(_:options:)``.
    public nonisolated func regenerate(
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Event, any Error> {
        stage.generate(options) { chat, options, outcome, _ in dollop_chat_regenerate(chat, options, nil, outcome) }
    }

    /// Adds `message` as the user's message, and returns the whole answer.
    ///
    /// - Throws: ``DollopError``, or `CancellationError` if the task is cancelled.
    public func reply(to message: String, options: GenerateOptions = GenerateOptions()) async throws -> Reply {
        var text = ""
        for try await event in send(message, options: options) {
            text += event.text ?? ""
            if case .done(let outcome) = event { return Reply(text: text, outcome: outcome) }
        }
        throw CancellationError()
    }

    /// Returns the messages so far, including the system prompt if one was given.
    public func messages() async throws -> [Message] {
        try await stage.call("messages") { chat in
            try takeJSON([Message].self) { try check(dollop_chat_messages_json(chat, $0)) }
        }
    }

    /// Replaces all messages, including the system prompt, to continue an earlier conversation.
    public func setMessages(_ messages: [Message]) async throws {
        try await stage.call("messages") { chat in
            let arena = Arena()
            try withExtendedLifetime(arena) {
                try check(dollop_chat_set_messages(chat, arena.messages(messages), messages.count))
            }
        }
    }

    /// Sets the chat template's variables: a JSON object, such as `{"enable_thinking": false}`. Replaces the previous ones.
    public func setVariables(json: String) async throws {
        try await stage.call("variables") { chat in
            let arena = Arena()
            try withExtendedLifetime(arena) {
                try check(dollop_chat_set_variables(chat, arena.text(json, "the variables")))
            }
        }
    }

    /// Sets the local date and time for templates that print it. Otherwise they have no clock.
    ///
    /// - Throws: ``DollopError/Status/invalid`` for a date after the year 9999.
    public func setTime(_ date: Date, in zone: TimeZone = .current) async throws {
        // As if the local clock showed UTC. A date before 1970 becomes the beginning of 1970.
        let seconds = date.timeIntervalSince1970 + Double(zone.secondsFromGMT(for: date))
        try await stage.call("time") { chat in
            try check(dollop_chat_set_time(chat, UInt64(exactly: max(0, seconds).rounded(.down)) ?? .max))
        }
    }

    /// Drops all messages except the system prompt.
    public func reset() async throws {
        try await stage.call("reset") { try check(dollop_chat_reset($0)) }
    }

    /// Returns how full the context is.
    public func info() async throws -> SessionInfo {
        try await stage.call("info") { chat in
            var info = dollop_session_info()
            try check(dollop_session_info_init(&info, MemoryLayout.size(ofValue: info)))
            try check(dollop_chat_get(chat, &info))
            return SessionInfo(info)
        }
    }

    /// Saves the conversation with its KV cache to a file. ``init(_:contentsOf:context:chunk:)`` restores it.
    ///
    /// An existing file is replaced only when the new one is complete. After ``cancel()``, this waits until the answer has ended.
    /// - Returns: the file's size in bytes.
    @discardableResult
    public func save(to url: URL) async throws -> UInt64 {
        try await stage.call("save") { chat in
            var bytes: UInt64 = 0
            try withPath(url) { try check(dollop_chat_save(chat, $0, &bytes)) }
            return bytes
        }
    }

    /// Stops the current answer, waits until it has ended, and saves the conversation. For apps that go to the background.
    /// - Returns: the file's size in bytes.
    @discardableResult
    public func stopAndSave(to url: URL) async throws -> UInt64 {
        cancel()
        return try await save(to: url)
    }

    /// Stops the current answer, if any. Its stream delivers what was generated and ends with ``Event/done(_:)``.
    public nonisolated func cancel() { stage.stop() }

    /// Stops the current answer and closes the chat. Further calls have no effect. Releasing the chat closes it, too, when its
    /// answer has ended.
    public nonisolated func close() { stage.close() }
}

extension Engine {
    /// Creates a conversation and allocates its memory.
    public func chat(options: ChatOptions = ChatOptions()) async throws -> Chat {
        try await Chat(self, options: options)
    }
}
