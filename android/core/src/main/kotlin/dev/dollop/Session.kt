// Sessions: sequences of tokens, without a chat template.
package dev.dollop

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.flow.Flow

/** How full the context of a chat or session is, in tokens. */
public data class SessionInfo(
    /** Positions of the KV cache. */
    val context: Long,
    /** Tokens in it. */
    val tokens: Long,
    /** Tokens computed since the chat or session was created. Reused tokens do not count. */
    val processedTokens: Long,
) {
    internal constructor(numbers: LongArray) : this(numbers[0], numbers[1], numbers[2])
}

/**
 * A sequence of tokens with its KV cache, to continue text without a chat template.
 *
 * Methods may be called from any thread, one call at a time: a second one fails with [Status.BUSY]. Only [cancel] and
 * [close] may be called at any time. After [close], all other methods fail with [Status.CLOSED].
 */
public interface Session : AutoCloseable {
    /**
     * Continues [prompt] while the returned flow is collected, as [Chat.send] does.
     *
     * The tokens that the model expects at the beginning of a text are put first. The prompt's beginning is reused as
     * far as it is in the KV cache; the rest of the cache is dropped.
     */
    public fun complete(prompt: String, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** Continues a prompt given as token ids, to which nothing is added. Otherwise the same as [complete]. */
    public fun generate(prompt: IntArray, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /**
     * Appends tokens and returns the logits of the token after them: unnormalised log probabilities, indexed by token id.
     * After a failure, the session is unchanged.
     *
     * @throws DollopException with [Status.INVALID] if [ids] is empty or has an id outside the vocabulary,
     * [Status.CONTEXT_FULL] if the tokens do not fit the context
     */
    public suspend fun logits(ids: IntArray): FloatArray

    /** Returns the tokens in the KV cache: the last prompt, and all but the last of the generated tokens. */
    public fun tokens(): IntArray

    /**
     * Drops all but the first [count] tokens. Has no effect if there are fewer.
     *
     * @throws DollopException with [Status.INVALID] if [count] is negative
     */
    public fun rewind(count: Int)

    /** Returns how full the context is. */
    public fun info(): SessionInfo

    /**
     * Returns a second session that begins with the tokens of this one, to continue one prefix in several ways. Nothing
     * is computed again.
     */
    public suspend fun fork(): Session

    /** Saves the session to a file, as [Chat.save] does. [Engine.loadSession] restores it. */
    public suspend fun save(path: String): Long

    /** Stops the current generation, if any. Its flow ends with [Event.Done]. */
    public fun cancel()

    /** Closes the session and stops the current generation. Further calls have no effect. */
    override fun close()
}

internal class NativeSession(number: Long, private val dispatcher: CoroutineDispatcher) : Session {
    internal val handle = Handle(number, "session", Native::sessionClose)
    private val generation = Generation(handle, dispatcher, Native::sessionCancel)

    override fun complete(prompt: String, options: GenerateOptions): Flow<Event> =
        generation.events { session, listener -> Native.sessionComplete(session, prompt, options.json(), listener) }

    override fun generate(prompt: IntArray, options: GenerateOptions): Flow<Event> =
        generation.events { session, listener -> Native.sessionGenerate(session, prompt, options.json(), listener) }

    override suspend fun logits(ids: IntArray): FloatArray {
        val session = handle.number
        return blocking(dispatcher) { Native.sessionLogits(session, ids) }
    }

    override fun tokens(): IntArray = Native.sessionTokens(handle.number)
    override fun rewind(count: Int): Unit = Native.sessionRewind(handle.number, count)
    override fun info(): SessionInfo = SessionInfo(Native.sessionNumbers(handle.number))
    override fun cancel(): Unit = Native.sessionCancel(handle.number)
    override fun close(): Unit = handle.close()

    override suspend fun fork(): Session {
        val session = handle.number
        return NativeSession(blocking(dispatcher, Native::sessionClose) { Native.sessionFork(session) }, dispatcher)
    }

    override suspend fun save(path: String): Long {
        val session = handle.number
        return blocking(dispatcher) { Native.sessionSave(session, path) }
    }
}
