// The events of a generation.
package dev.dollop

import kotlinx.serialization.Serializable

/** An event of a generation. Events come in order. */
public sealed interface Event {
    /**
     * The text that can be shown now, in whole characters; empty for events without text. An answer is the
     * concatenation of its events' texts.
     */
    public val text: String get() = ""

    /**
     * Progress of prefill. Prompt tokens that were already in the KV cache do not count.
     *
     * @property done tokens computed so far
     * @property total tokens to compute in all
     */
    public data class Prefill(val done: Long, val total: Long) : Event

    /**
     * A token was generated. Its [text] may be empty: if the token ends within a character, could begin a stop string,
     * or belongs to the model's reasoning.
     *
     * @property id the token's id
     */
    public data class Token(val id: Int, override val text: String) : Event

    /** The end of the text, which was held back until the generation ended. */
    public data class Rest(override val text: String) : Event

    /**
     * The GPU failed and the CPU continues. No token is lost.
     *
     * @property note what happened, in one line
     */
    public data class GpuLost(val note: String) : Event

    /**
     * The generation has ended. The last event, unless the collector cancels.
     *
     * @property outcome the result of the generation
     */
    public data class Done(val outcome: Outcome) : Event
}

/** The result of a generation. */
@Serializable
public data class Outcome(
    /** Why the generation ended. */
    val stop: StopReason,
    /** Tokens of the prompt. */
    val promptTokens: Int,
    /** Prompt tokens that were already in the KV cache. */
    val reusedTokens: Int,
    /** Generated tokens, without the end-of-turn token. */
    val generatedTokens: Int,
    /** Seconds spent on the prompt tokens that were not reused. */
    val prefillSeconds: Double,
    /** Seconds spent on the generated tokens. */
    val decodeSeconds: Double,
) {
    /** Generated tokens per second; null if none were generated. */
    public val tokensPerSecond: Double? get() = if (decodeSeconds > 0) generatedTokens / decodeSeconds else null
}

/**
 * A whole answer.
 *
 * @property text the answer's text
 * @property outcome the result of the generation
 */
public data class Reply(val text: String, val outcome: Outcome)

/** Why a generation ended. */
public enum class StopReason {
    /** The model ended its turn. */
    END_OF_TURN,

    /** The answer contained a stop string. */
    STOP_TEXT,

    /** [GenerateOptions.maxTokens] tokens were generated. */
    MAX_TOKENS,

    /** `cancel` or `close` was called. */
    CANCELLED,

    /** The KV cache is full. */
    CONTEXT_FULL,

    /** A reason that this version has no name for. */
    OTHER
}

/** Builds the event of a native callback; [kind] is a `DOLLOP_EVENT_` of dollop.h. */
internal fun event(kind: Long, token: Long, done: Long, total: Long, text: String): Event = when (kind) {
    0L -> Event.Prefill(done, total)
    1L -> Event.Token(token.toInt(), text)
    2L -> Event.Rest(text)
    else -> Event.GpuLost(text)
}

/** Builds the outcome from the result of a native call: one number per property, in order. */
internal fun outcome(numbers: DoubleArray): Outcome = Outcome(
    StopReason.entries.getOrElse(numbers[0].toInt()) { StopReason.OTHER },
    numbers[1].toInt(), numbers[2].toInt(), numbers[3].toInt(), numbers[4], numbers[5],
)
