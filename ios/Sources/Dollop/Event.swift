// The events of a generation, its outcome, and messages.
import CDollop

/// An event of a generation. Events come in order.
public enum Event: Sendable, Hashable {
    /// Progress of prefill: `done` of `total` tokens are computed. Prompt tokens that were already in the KV cache do not count.
    case prefill(done: Int, total: Int)
    /// A token was generated. `text` can be shown now, in whole characters. It is empty if the token ends within a character, could
    /// begin a stop string, or belongs to the model's reasoning.
    case token(TokenID, text: String)
    /// The end of the text, which was held back until the generation ended.
    case rest(String)
    /// The GPU failed and the CPU continues. No token is lost. `note` is what happened, in one line.
    case gpuLost(note: String)
    /// The generation has ended. The last event, unless the consumer leaves before.
    case done(Outcome)

    /// The text to append to the answer; nil for events without text of the model.
    public var text: String? {
        switch self {
        case .token(_, let text), .rest(let text): text
        case .prefill, .gpuLost, .done: nil
        }
    }

    /// Converts an event of C. Returns nil for kinds that this version does not define.
    init?(_ event: dollop_event) {
        var text: String {
            let bytes = UnsafeRawBufferPointer(start: event.text, count: event.text_len)
            return String(decoding: bytes, as: UTF8.self)
        }
        switch Int32(event.kind) {
        case DOLLOP_EVENT_PREFILL: self = .prefill(done: Int(event.done), total: Int(event.total))
        case DOLLOP_EVENT_TOKEN: self = .token(event.token, text: text)
        case DOLLOP_EVENT_REST: self = .rest(text)
        case DOLLOP_EVENT_GPU_LOST: self = .gpuLost(note: text)
        default: return nil
        }
    }
}

/// Why a generation ended.
public enum StopReason: String, Codable, Sendable, Hashable {
    /// The model ended its turn.
    case endOfTurn
    /// The answer contained a stop string.
    case stopText
    /// ``GenerateOptions/maxTokens`` tokens were generated.
    case maxTokens
    /// The generation was cancelled, as by ``Chat/cancel()`` or ``Chat/close()``.
    case cancelled
    /// The KV cache is full.
    case contextFull
    /// A reason that this version does not define.
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

/// The result of a generation.
public struct Outcome: Codable, Sendable, Hashable {
    /// Why the generation ended.
    public let stop: StopReason
    /// Tokens of the prompt.
    public let promptTokens: Int
    /// Prompt tokens that were already in the KV cache.
    public let reusedTokens: Int
    /// Generated tokens, without the end-of-turn token.
    public let generatedTokens: Int
    /// Seconds spent on the prompt tokens that were not reused.
    public let prefillSeconds: Double
    /// Seconds spent on the generated tokens.
    public let decodeSeconds: Double

    /// Generated tokens per second; nil if none were generated.
    public var tokensPerSecond: Double? {
        decodeSeconds > 0 ? Double(generatedTokens) / decodeSeconds : nil
    }

    /// The outcome of a generation that was cancelled before it began.
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
    /// The answer's text.
    public let text: String
    /// The result of the generation.
    public let outcome: Outcome
}

/// A message of a conversation.
public struct Message: Codable, Sendable, Hashable {
    /// "system", "user", "assistant", or another role that the model's chat template supports.
    public var role: String
    /// The message's text.
    public var content: String

    /// Creates a message.
    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

extension Arena {
    /// Returns messages as an array of C structs.
    func messages(_ messages: [Message]) throws -> UnsafePointer<dollop_message> {
        array(
            try messages.map {
                dollop_message(role: try text($0.role, "a role"), content: try text($0.content, "a message"))
            })
    }
}
