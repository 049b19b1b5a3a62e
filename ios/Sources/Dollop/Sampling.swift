// Options for choosing tokens and for generating.
import CDollop

/// How tokens are chosen.
///
/// Nil selects what the model's file recommends, or the library's default if it recommends nothing. Each property says which value
/// switches its step off.
public struct Sampling: Codable, Sendable, Hashable {
    /// Seed of the random sequence. The same seed, tokens and budget give the same text.
    public var seed: UInt64?
    /// Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    public var temperature: Float?
    /// Keeps only this many of the likeliest tokens; 0 keeps all.
    public var topK: Int?
    /// Keeps only the likeliest tokens that together have this probability; 1 keeps all.
    public var topP: Float?
    /// Keeps only tokens at least this fraction as likely as the likeliest; 0 keeps all.
    public var minP: Float?
    /// Keeps only the tokens whose surprise is nearest to the expected one, until together they have this probability; 1 keeps all.
    public var typicalP: Float?
    /// Keeps only logits within this many standard deviations of the highest; 0 keeps all.
    public var topNSigma: Float?
    /// How often XTC drops all but the least likely of the probable tokens, as a probability; 0 switches XTC off.
    public var xtcProbability: Float?
    /// Probability from which XTC counts a token as probable; more than 0.5 switches XTC off.
    public var xtcThreshold: Float?
    /// Divides the logits of recent tokens, or multiplies negative ones; 1 has no effect.
    public var repeatPenalty: Float?
    /// Number of previous tokens that count as recent; 0 switches all penalties off.
    public var repeatLastN: Int?
    /// Subtracted from the logits of recent tokens; 0 has no effect.
    public var presencePenalty: Float?
    /// Subtracted from the logits of recent tokens, once per occurrence; 0 has no effect.
    public var frequencyPenalty: Float?
    /// A penalty on repetitions.
    public var dry: DRY?
    /// Replaces the whole chain except the temperature.
    public var mirostat: Mirostat?
    /// Added to the logits of single tokens, before all other steps. With minus infinity, a token is never chosen.
    public var logitBias: [TokenID: Float]?
    /// The steps to apply, in order, such as "penalties;top_k;top_p;temperature".
    public var chain: String?

    /// A penalty on repetitions: a token that would continue a repetition of n tokens loses
    /// `multiplier * base^(n - allowedLength)`.
    public struct DRY: Codable, Sendable, Hashable {
        /// The factor of the penalty; 0 switches DRY off.
        public var multiplier: Float
        /// The base of the penalty.
        public var base: Float
        /// Repetitions shorter than this are ignored.
        public var allowedLength: Int
        /// Number of previous tokens in which DRY looks for repetitions; 0 switches DRY off.
        public var lastN: Int
        /// Texts that DRY matches no repetition across; nil for the model's own.
        public var breakers: [String]?

        /// Creates a penalty. Each parameter sets the property of its name.
        public init(multiplier: Float, base: Float, allowedLength: Int, lastN: Int, breakers: [String]? = nil) {
            self.multiplier = multiplier
            self.base = base
            self.allowedLength = allowedLength
            self.lastN = lastN
            self.breakers = breakers
        }
    }

    /// Mirostat (Basu et al., 2020), which adapts the number of candidates to how surprising the text was so far.
    ///
    /// `tau` is the surprise per token that it aims at, in bits. `eta` is its learning rate.
    public enum Mirostat: Codable, Sendable, Hashable {
        /// Off: the chain is used.
        case off
        /// As in the paper: the number of candidates is estimated from a Zipf exponent.
        case v1(tau: Float, eta: Float)
        /// All tokens up to a maximum surprise are candidates.
        case v2(tau: Float, eta: Float)
    }

    /// Creates options. Each parameter sets the property of its name; the other properties are nil.
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

    /// Always takes the likeliest token.
    public static let greedy = Sampling(temperature: 0)

    /// Copies the numbers of a C struct. Its lists and texts stay nil, so the model's own apply.
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

    /// Overwrites a C struct with the properties that are not nil. Texts and lists live in `arena`.
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
            // Sorted, so that equal options make equal calls.
            let list = logitBias.sorted { $0.key < $1.key }.map { dollop_logit_bias(token: $0.key, bias: $0.value) }
            s.logit_bias = arena.array(list)
            s.logit_bias_count = list.count
        }
        s.chain = try chain.map { try arena.text($0, "chain") } ?? s.chain
    }
}

extension Sampling {
    /// Returns the options that the model's file recommends.
    init(of engine: Handle) throws {
        var s = dollop_sampling()
        try check(dollop_sampling_init(&s, MemoryLayout.size(ofValue: s)))
        try check(dollop_engine_sampling(engine.get(), &s))
        self.init(s)
    }
}

/// A form that the answer must have. It applies to the answer, not to the reasoning before it.
///
/// If it cannot be compiled, the generation fails with ``DollopError/Status/invalid``.
public enum Constraint: Sendable, Hashable {
    /// The answer is JSON that is valid under a JSON Schema.
    case jsonSchema(String)
    /// The whole answer matches a regular expression of the Rust crate `regex`, without lookaround.
    case regex(String)
    /// The answer is derived by the rule `start` of a grammar in llguidance's variant of Lark.
    case grammar(String)
}

/// Options for generating an answer.
public struct GenerateOptions: Sendable, Hashable {
    /// The most tokens to generate; 0 only processes the prompt.
    public var maxTokens: Int
    /// How the next token is chosen.
    public var sampling: Sampling
    /// Stop strings: texts that end the answer. They are not part of it.
    public var stop: [String]
    /// Whether to continue after an end-of-turn token.
    public var ignoreEos: Bool
    /// The target speed in tokens per second, if experts are streamed with adaptive precision; nil for none. The precision is lowered
    /// or raised to reach it, so results depend on the machine's speed.
    public var targetTokensPerSecond: Double?
    /// The form that the answer must have; nil for none.
    public var constraint: Constraint?

    /// Creates options. Each parameter sets the property of its name.
    public init(
        maxTokens: Int = 512, sampling: Sampling = Sampling(), stop: [String] = [], ignoreEos: Bool = false,
        targetTokensPerSecond: Double? = nil, constraint: Constraint? = nil
    ) {
        self.maxTokens = maxTokens
        self.sampling = sampling
        self.stop = stop
        self.ignoreEos = ignoreEos
        self.targetTokensPerSecond = targetTokensPerSecond
        self.constraint = constraint
    }

    /// Returns the options as a C struct; what it points to lives in `arena`. `own` has the model's sampling options.
    func native(_ arena: Arena, over own: Sampling) throws -> dollop_generate_options {
        var o = dollop_generate_options()
        try check(dollop_generate_options_init(&o, MemoryLayout.size(ofValue: o)))
        o.max_tokens = try number(maxTokens, "maxTokens")
        o.ignore_eos = ignoreEos ? 1 : 0
        o.target_tps = targetTokensPerSecond ?? 0
        o.stop = try arena.texts(stop, "a stop text")
        o.stop_count = stop.count
        switch constraint {
        case nil: break
        case .jsonSchema(let text): o.json_schema = try arena.text(text, "the schema")
        case .regex(let text): o.regex = try arena.text(text, "the regular expression")
        case .grammar(let text): o.grammar = try arena.text(text, "the grammar")
        }
        var chosen = dollop_sampling()
        try check(dollop_sampling_init(&chosen, MemoryLayout.size(ofValue: chosen)))
        try own.apply(to: &chosen, arena)
        try sampling.apply(to: &chosen, arena)
        o.sampling = arena.array([chosen])
        return o
    }
}
