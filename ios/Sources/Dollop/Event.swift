// What a generation says, and what remains of it.
import CDollop

/// What happens during a generation, in order.
public enum Event: Sendable, Hashable {
    /// Of the prompt, `done` of `total` tokens are read.
    case prefill(done: Int, total: Int)
    /// A token, and what can be shown by now: whole characters, perhaps none.
    case token(TokenID, text: String)
    /// The end of the text that was held back until now.
    case rest(String)
    /// The GPU failed and the CPU goes on; no token is lost.
    case gpuLost(reason: String)
    /// The last event.
    case finished(Outcome)

    /// What to append to the answer; nil for events that have no text of the model.
    public var text: String? {
        switch self {
        case .token(_, let text), .rest(let text): text
        case .prefill, .gpuLost, .finished: nil
        }
    }

    /// Nil for kinds that this version does not know.
    init?(_ event: dollop_event) {
        var text: String {
            let bytes = UnsafeRawBufferPointer(start: event.text, count: event.text_len)
            return String(decoding: bytes, as: UTF8.self)
        }
        switch Int32(event.kind) {
        case DOLLOP_EVENT_PREFILL: self = .prefill(done: Int(event.done), total: Int(event.total))
        case DOLLOP_EVENT_TOKEN: self = .token(event.token, text: text)
        case DOLLOP_EVENT_REST: self = .rest(text)
        case DOLLOP_EVENT_GPU_LOST: self = .gpuLost(reason: text)
        default: return nil
        }
    }
}

/// Why an answer ended.
public enum StopReason: String, Codable, Sendable, Hashable {
    /// The model ended its turn.
    case endOfTurn
    /// A stop text was met.
    case stopText
    /// ``GenerationOptions/maxTokens`` were generated.
    case maxTokens
    /// ``ChatSession/cancel()`` was called.
    case cancelled
    /// The KV cache is full.
    case contextFull
    /// A reason that this version does not know.
    case other

    init(_ reason: UInt32) {
        self = switch Int32(reason) {
        case DOLLOP_STOP_END_OF_TURN: .endOfTurn
        case DOLLOP_STOP_TEXT: .stopText
        case DOLLOP_STOP_MAX_TOKENS: .maxTokens
        case DOLLOP_STOP_CANCELLED: .cancelled
        case DOLLOP_STOP_CONTEXT_FULL: .contextFull
        default: .other
        }
    }
}

/// A generation in numbers.
public struct Outcome: Codable, Sendable, Hashable {
    public let stop: StopReason
    /// Tokens of the prompt, and of those, found in the cache.
    public let promptTokens: Int
    /// See ``promptTokens``.
    public let reusedTokens: Int
    /// Tokens generated, an end-of-turn token excluded.
    public let generatedTokens: Int
    /// Seconds for the rest of the prompt.
    public let prefillSeconds: Double
    /// Seconds for the generated tokens.
    public let decodeSeconds: Double

    /// Tokens generated per second; nil where none were.
    public var tokensPerSecond: Double? {
        decodeSeconds > 0 ? Double(generatedTokens) / decodeSeconds : nil
    }

    /// Of a generation that was cancelled before it began.
    static let nothing = Outcome(dollop_outcome(), stop: .cancelled)

    init(_ o: dollop_outcome, stop: StopReason? = nil) {
        self.stop = stop ?? StopReason(o.stop)
        promptTokens = Int(o.prompt_tokens)
        reusedTokens = Int(o.reused_tokens)
        generatedTokens = Int(o.generated_tokens)
        prefillSeconds = o.prefill_seconds
        decodeSeconds = o.decode_seconds
    }
}

/// A whole answer.
public struct Reply: Sendable, Hashable {
    public let text: String
    public let outcome: Outcome
}

/// One message of a conversation.
public struct Message: Codable, Sendable, Hashable {
    /// "system", "user", "assistant" or what else the model's template knows.
    public var role: String
    public var content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

extension Arena {
    func messages(_ messages: [Message]) throws -> UnsafePointer<dollop_message> {
        array(
            try messages.map {
                dollop_message(role: try text($0.role, "a role"), content: try text($0.content, "a message"))
            })
    }
}
