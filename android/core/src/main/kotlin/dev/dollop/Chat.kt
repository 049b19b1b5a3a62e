// A conversation. Its answers are cold flows: collecting one generates, cancelling the collector stops.
package dev.dollop

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.flow.Flow
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.JsonObject

/** One message: [role] is "system", "user", "assistant" or what else the model's template knows. */
@Serializable
public data class Message(val role: String, val content: String)

/**
 * A conversation; one call at a time, from any thread: a second one is [Status.BUSY]. [close] and [cancel] may come at any time,
 * from any thread.
 */
public interface Chat : AutoCloseable {
    /**
     * Says [message] and generates the answer while the flow is collected. A slow collector slows generation down. When its
     * collector is cancelled, generation stops, and what was said so far stays in the conversation. The last event is
     * [Event.Done]. A second collection says it again.
     */
    public fun send(message: String, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** Takes the last answer back and answers the same message again, as [send] does. */
    public fun regenerate(options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** What was said so far; the system prompt too, if one was given. */
    public fun messages(): List<Message>

    /** Replaces the conversation, the system prompt included. */
    public fun setMessages(messages: List<Message>)

    /** What the template sees beside the messages, such as `enable_thinking`, in place of what was set before. */
    public fun setVariables(variables: JsonObject)

    /** The local time, in seconds since 1970 as if the clock showed UTC, for templates that say it. */
    public fun setTime(seconds: Long)

    /** Forgets the conversation but not the system prompt. */
    public fun reset()

    /** How full its context is. */
    public fun timeline(): Timeline

    /**
     * Writes the conversation to a file, which takes the place of one that is there only when it is whole. [Engine.loadChat] goes on
     * with it, perhaps in another process, without computing it again. Returns the bytes of the file.
     */
    public suspend fun save(path: String): Long

    /** Stops the answer that is generated now; its flow ends with [Event.Done]. */
    public fun cancel()

    /** Any number of times. An answer that is generated now stops. */
    override fun close()
}

internal class NativeChat(number: Long, private val dispatcher: CoroutineDispatcher) : Chat {
    private val handle = Handle(number, "chat", Native::chatClose)
    private val generation = Generation(handle, dispatcher, Native::chatCancel)

    override fun send(message: String, options: GenerateOptions): Flow<Event> = generation.events { chat, listener ->
        Native.chatSend(chat, message, options.maxTokens, options.sampling.json(), options.stops(), listener)
    }

    override fun regenerate(options: GenerateOptions): Flow<Event> = generation.events { chat, listener ->
        Native.chatRegenerate(chat, options.maxTokens, options.sampling.json(), options.stops(), listener)
    }

    override fun messages(): List<Message> = json.decodeFromString(Native.chatMessages(handle.number))
    override fun setMessages(messages: List<Message>): Unit = Native.chatSetMessages(handle.number, json.encodeToString(messages))
    override fun setVariables(variables: JsonObject): Unit = Native.chatSetVariables(handle.number, variables.toString())
    override fun setTime(seconds: Long): Unit = Native.chatSetTime(handle.number, seconds)
    override fun reset(): Unit = Native.chatReset(handle.number)
    override fun timeline(): Timeline = Timeline(Native.chatNumbers(handle.number))
    override fun cancel(): Unit = Native.chatCancel(handle.number)
    override fun close(): Unit = handle.close()

    override suspend fun save(path: String): Long {
        val chat = handle.number
        return blocking(dispatcher) { Native.chatSave(chat, path) }
    }
}
