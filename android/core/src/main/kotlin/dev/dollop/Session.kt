// A timeline of plain text and tokens, without a chat template.
package dev.dollop

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.flow.Flow

/** A timeline in numbers, all of tokens. */
public data class Timeline(
    /** Room. */
    val context: Long,
    /** What of it is taken. */
    val tokens: Long,
    /** Computed since the timeline was made: what reuse of the cache saves does not appear here. */
    val processedTokens: Long,
) {
    internal constructor(numbers: LongArray) : this(numbers[0], numbers[1], numbers[2])
}

/**
 * A timeline; one call at a time, from any thread: a second one is [Status.BUSY]. [close] and [cancel] may come at any time, from
 * any thread.
 */
public interface Session : AutoCloseable {
    /**
     * Reads [prompt], in front of which come the tokens that the model wants at the beginning of a text, and continues it while the
     * flow is collected, as [Chat.send] does. What the cache holds of the prompt's beginning is reused.
     */
    public fun complete(prompt: String, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** The same with the prompt as tokens, to which nothing is added. */
    public fun generate(prompt: IntArray, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** What the timeline holds: the last prompt, and all but the last of the tokens that were generated. */
    public fun tokens(): IntArray

    /** Forgets all but the first [count] tokens; no failure if there are fewer. */
    public fun rewind(count: Int)

    /** How full it is. */
    public fun timeline(): Timeline

    /** A second timeline that begins with what this one holds, to continue one prefix in several ways. Nothing is computed. */
    public suspend fun fork(): Session

    /** Writes the timeline to a file, as [Chat.save] does; [Engine.loadSession] goes on with it. Returns the bytes of the file. */
    public suspend fun save(path: String): Long

    /** Stops what is generated now; its flow ends with [Event.Done]. */
    public fun cancel()

    /** Any number of times. What is generated now stops. */
    override fun close()
}

internal class NativeSession(number: Long, private val dispatcher: CoroutineDispatcher) : Session {
    internal val handle = Handle(number, "session", Native::sessionClose)
    private val generation = Generation(handle, dispatcher, Native::sessionCancel)

    override fun complete(prompt: String, options: GenerateOptions): Flow<Event> = generation.events { session, listener ->
        Native.sessionComplete(session, prompt, options.maxTokens, options.sampling.json(), options.stops(), listener)
    }

    override fun generate(prompt: IntArray, options: GenerateOptions): Flow<Event> = generation.events { session, listener ->
        Native.sessionGenerate(session, prompt, options.maxTokens, options.sampling.json(), options.stops(), listener)
    }

    override fun tokens(): IntArray = Native.sessionTokens(handle.number)
    override fun rewind(count: Int): Unit = Native.sessionRewind(handle.number, count)
    override fun timeline(): Timeline = Timeline(Native.sessionNumbers(handle.number))
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
