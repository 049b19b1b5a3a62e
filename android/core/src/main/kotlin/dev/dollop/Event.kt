// What a generation says, in order.
package dev.dollop

/** What happens during a generation. */
public sealed interface Event {
    /** What can be shown now, whole characters; empty for events that have no text. An answer is the texts of its events. */
    public val text: String get() = ""

    /** [done] of [total] prompt tokens are read. */
    public data class Prefill(val done: Long, val total: Long) : Event

    /** A token; [text] is what became showable with it, perhaps nothing. */
    public data class Token(val id: Int, override val text: String) : Event

    /** The end of the text that was held back until now. */
    public data class Rest(override val text: String) : Event

    /** The GPU failed and the CPU goes on; no token is lost. */
    public data class GpuLost(val note: String) : Event

    /** The last event of an answer that was not cancelled by its collector. */
    public data class Done(
        val stop: Stop,
        val promptTokens: Int,
        val reusedTokens: Int,
        val generatedTokens: Int,
        val prefillSeconds: Double,
        val decodeSeconds: Double,
    ) : Event
}

/** Why an answer ended. */
public enum class Stop { END_OF_TURN, STOP_TEXT, MAX_TOKENS, CANCELLED, CONTEXT_FULL, OTHER }

internal fun event(kind: Long, token: Long, done: Long, total: Long, text: String): Event = when (kind) {
    0L -> Event.Prefill(done, total)
    1L -> Event.Token(token.toInt(), text)
    2L -> Event.Rest(text)
    else -> Event.GpuLost(text)
}

internal fun done(numbers: DoubleArray): Event.Done = Event.Done(
    Stop.entries.getOrElse(numbers[0].toInt()) { Stop.OTHER },
    numbers[1].toInt(), numbers[2].toInt(), numbers[3].toInt(), numbers[4], numbers[5],
)
