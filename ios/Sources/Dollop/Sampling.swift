// How tokens are chosen.
import CDollop

/// How tokens are chosen. What is nil is what the model's file advises, and the library's own number where it says nothing.
public struct Sampling: Codable, Sendable, Hashable {
    /// Start of the random sequence: the same seed, tokens and budget give the same text.
    public var seed: UInt64?
    /// Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    public var temperature: Float?
    /// Only the likeliest; 0 for all.
    public var topK: Int?
    /// Only the likeliest that together have this probability; 1 for all.
    public var topP: Float?
    /// Only those at least this part as likely as the likeliest; 0 for all.
    public var minP: Float?
    /// Only those whose surprise is nearest to the expected one, together of this probability; 1 for all.
    public var typicalP: Float?
    /// Only logits within this many standard deviations of the highest; 0 for all.
    public var topNSigma: Float?
    /// How often all but the least likely of the probable tokens are left out (XTC); 0 for never.
    public var xtcProbability: Float?
    /// What counts as probable for XTC; above 0.5 for never.
    public var xtcThreshold: Float?
    /// Divides the logit of recent tokens; 1 for none.
    public var repeatPenalty: Float?
    /// How many tokens back are recent; 0 for no penalty.
    public var repeatLastN: Int?
    /// Subtracted from the logit of recent tokens; 0 for none.
    public var presencePenalty: Float?
    /// Subtracted from the logit of recent tokens, once for each time; 0 for none.
    public var frequencyPenalty: Float?
    /// Repetitions that lose logits.
    public var dry: DRY?
    /// In place of the whole chain but the temperature.
    public var mirostat: Mirostat?
    /// Added to the logits of single tokens before everything else; minus infinity for a token that is never chosen.
    public var logitBias: [TokenID: Float]?
    /// The steps in order, such as "penalties;top_k;top_p;temperature".
    public var chain: String?

    /// A token that would continue a repetition of n tokens loses multiplier * base^(n - allowedLength).
    public struct DRY: Codable, Sendable, Hashable {
        /// 0 for nothing.
        public var multiplier: Float
        public var base: Float
        /// Repetitions shorter than this are free.
        public var allowedLength: Int
        /// How many tokens back repetitions are looked for; 0 for none.
        public var lastN: Int
        /// Texts over which no repetition is followed; nil for the model's own.
        public var breakers: [String]?

        public init(multiplier: Float, base: Float, allowedLength: Int, lastN: Int, breakers: [String]? = nil) {
            self.multiplier = multiplier
            self.base = base
            self.allowedLength = allowedLength
            self.lastN = lastN
            self.breakers = breakers
        }
    }

    /// Sampling that aims at a surprise.
    public enum Mirostat: Codable, Sendable, Hashable {
        case off
        /// As in the paper: the surprise per token that it aims at, in bits, and how fast it learns.
        case v1(tau: Float, eta: Float)
        /// Mirostat 2.
        case v2(tau: Float, eta: Float)
    }

    /// Everything as the model's file advises, but for what is set afterwards.
    public init(
        temperature: Float? = nil, topK: Int? = nil, topP: Float? = nil, minP: Float? = nil, repeatPenalty: Float? = nil,
        seed: UInt64? = nil
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repeatPenalty = repeatPenalty
        self.seed = seed
    }

    /// Always the likeliest token.
    public static let greedy = Sampling(temperature: 0)

    /// Of numbers alone: lists are the model's own.
    init(_ s: dollop_sampling) {
        self.init(
            temperature: s.temperature, topK: Int(s.top_k), topP: s.top_p, minP: s.min_p, repeatPenalty: s.repeat_penalty,
            seed: s.seed)
        typicalP = s.typical_p
        topNSigma = s.top_n_sigma
        xtcProbability = s.xtc_probability
        xtcThreshold = s.xtc_threshold
        repeatLastN = Int(s.repeat_last_n)
        presencePenalty = s.presence_penalty
        frequencyPenalty = s.frequency_penalty
        dry = DRY(
            multiplier: s.dry_multiplier, base: s.dry_base, allowedLength: Int(s.dry_allowed_length),
            lastN: Int(s.dry_last_n))
        mirostat = switch Int32(s.mirostat) {
        case DOLLOP_MIROSTAT_V1: .v1(tau: s.mirostat_tau, eta: s.mirostat_eta)
        case DOLLOP_MIROSTAT_V2: .v2(tau: s.mirostat_tau, eta: s.mirostat_eta)
        default: .off
        }
    }

    /// Puts what is set over the model's own numbers; texts and lists live in `arena`.
    func apply(to s: inout dollop_sampling, _ arena: Arena) throws {
        s.seed = seed ?? s.seed
        s.temperature = temperature ?? s.temperature
        s.top_k = try topK.map { try number($0, "topK") } ?? s.top_k
        s.top_p = topP ?? s.top_p
        s.min_p = minP ?? s.min_p
        s.typical_p = typicalP ?? s.typical_p
        s.top_n_sigma = topNSigma ?? s.top_n_sigma
        s.xtc_probability = xtcProbability ?? s.xtc_probability
        s.xtc_threshold = xtcThreshold ?? s.xtc_threshold
        s.repeat_penalty = repeatPenalty ?? s.repeat_penalty
        s.repeat_last_n = try repeatLastN.map { try number($0, "repeatLastN") } ?? s.repeat_last_n
        s.presence_penalty = presencePenalty ?? s.presence_penalty
        s.frequency_penalty = frequencyPenalty ?? s.frequency_penalty
        if let dry {
            s.dry_multiplier = dry.multiplier
            s.dry_base = dry.base
            s.dry_allowed_length = try number(dry.allowedLength, "allowedLength")
            s.dry_last_n = try number(dry.lastN, "lastN")
            if let breakers = dry.breakers {
                s.dry_breakers = try arena.texts(breakers, "a breaker")
                s.dry_breaker_count = try number(breakers.count, "breakers")
            }
        }
        switch mirostat {
        case nil: break
        case .off: s.mirostat = UInt32(DOLLOP_MIROSTAT_OFF)
        case .v1(let tau, let eta): (s.mirostat, s.mirostat_tau, s.mirostat_eta) = (UInt32(DOLLOP_MIROSTAT_V1), tau, eta)
        case .v2(let tau, let eta): (s.mirostat, s.mirostat_tau, s.mirostat_eta) = (UInt32(DOLLOP_MIROSTAT_V2), tau, eta)
        }
        if let logitBias {
            // In order: the same options are the same call.
            let list = logitBias.sorted { $0.key < $1.key }.map { dollop_logit_bias(token: $0.key, bias: $0.value) }
            s.logit_bias = arena.array(list)
            s.logit_bias_count = list.count
        }
        s.chain = try chain.map { try arena.text($0, "chain") } ?? s.chain
    }
}

extension Sampling {
    /// What a model's file advises.
    init(of engine: Handle) throws {
        var s = dollop_sampling()
        try check(dollop_sampling_init(&s, MemoryLayout.size(ofValue: s)))
        try check(dollop_engine_sampling(engine.get(), &s))
        self.init(s)
    }
}

/// How an answer is generated.
public struct GenerationOptions: Sendable, Hashable {
    /// Most tokens to generate; 0 only reads the prompt.
    public var maxTokens: Int
    public var sampling: Sampling
    /// Texts that end the answer and are not part of it.
    public var stop: [String]
    /// Go on after an end-of-turn token.
    public var ignoresEndOfTurn: Bool
    /// Where experts are streamed adaptively, the precision follows this many tokens per second; results then depend on the
    /// machine's speed.
    public var targetTokensPerSecond: Double?
    /// The answer is JSON that obeys this JSON Schema. One of `jsonSchema`, `regex` and `grammar` at most.
    public var jsonSchema: String?
    /// The answer is what this regular expression matches as a whole.
    public var regex: String?
    /// The answer is what this grammar derives from `start`, in llguidance's form of Lark.
    public var grammar: String?

    public init(
        maxTokens: Int = 512, sampling: Sampling = Sampling(), stop: [String] = [], ignoresEndOfTurn: Bool = false,
        targetTokensPerSecond: Double? = nil, jsonSchema: String? = nil, regex: String? = nil, grammar: String? = nil
    ) {
        self.maxTokens = maxTokens
        self.sampling = sampling
        self.stop = stop
        self.ignoresEndOfTurn = ignoresEndOfTurn
        self.targetTokensPerSecond = targetTokensPerSecond
        self.jsonSchema = jsonSchema
        self.regex = regex
        self.grammar = grammar
    }

    /// The struct of C; what it points to lives in `arena`.
    func native(_ arena: Arena, over own: Sampling) throws -> dollop_generate_options {
        var o = dollop_generate_options()
        try check(dollop_generate_options_init(&o, MemoryLayout.size(ofValue: o)))
        o.max_tokens = try number(maxTokens, "maxTokens")
        o.ignore_eos = ignoresEndOfTurn ? 1 : 0
        o.target_tps = targetTokensPerSecond ?? 0
        o.stop = try arena.texts(stop, "a stop text")
        o.stop_count = stop.count
        o.json_schema = try arena.optionalText(jsonSchema, "jsonSchema")
        o.regex = try arena.optionalText(regex, "regex")
        o.grammar = try arena.optionalText(grammar, "grammar")
        var chosen = dollop_sampling()
        try check(dollop_sampling_init(&chosen, MemoryLayout.size(ofValue: chosen)))
        try own.apply(to: &chosen, arena)
        try sampling.apply(to: &chosen, arena)
        o.sampling = arena.array([chosen])
        return o
    }
}
