// Conversations. Answers are cold flows: collecting one generates it, and cancelling the collector stops it.
package dev.dollop

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.toList
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.JsonObject

/**
 * A message of a conversation.
 *
 * @property role "system", "user", "assistant", or another role that the model's chat template supports
 * @property content the message's text
 */
@Serializable
public data class Message(val role: String, val content: String)

/**
 * A conversation with a model.
 *
 * Methods may be called from any thread, one call at a time: a second one fails with [Status.BUSY]. Only [cancel] and
 * [close] may be called at any time. After [close], all other methods fail with [Status.CLOSED].
 */
public interface Chat : AutoCloseable {
    /**
     * Adds [message] as the user's message, and generates the answer while the returned flow is collected.
     *
     * The flow is cold: collecting it again sends the message again. At most 16 events wait for a slow collector; then
     * generation waits, too. The last event is [Event.Done]. If the collector is cancelled, generation stops, and the
     * flow completes when the native call has returned. The text generated so far stays in the conversation.
     *
     * The flow throws [DollopException] to its collector: [Status.BUSY] during another call, [Status.CONTEXT_FULL] if
     * the conversation does not fit the context, [Status.INVALID] if an option is out of range. The conversation is
     * then unchanged.
     */
    public fun send(message: String, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** Discards the last answer and generates another to the same message. Otherwise the same as [send]. */
    public fun regenerate(options: GenerateOptions = GenerateOptions()): Flow<Event>

    /**
     * Adds [message] as the user's message, and returns the whole answer. If the coroutine is cancelled, generation stops,
     * and the text generated so far stays in the conversation. Otherwise the same as [send].
     */
    public suspend fun reply(message: String, options: GenerateOptions = GenerateOptions()): Reply

    /** Returns the messages so far, including the system prompt if one was given. */
    public fun messages(): List<Message>

    /** Replaces all messages, including the system prompt, to continue an earlier conversation. */
    public fun setMessages(messages: List<Message>)

    /** Sets the chat template's variables, such as `enable_thinking`. Replaces the previous ones. */
    public fun setVariables(variables: JsonObject)

    /**
     * Sets the local date and time for templates that print it. Otherwise they have no clock.
     *
     * @param seconds seconds since 1970, as if the local clock showed UTC; up to the year 9999
     */
    public fun setTime(seconds: Long)

    /** Drops all messages except the system prompt. */
    public fun reset()

    /** Returns how full the context is. */
    public fun info(): SessionInfo

    /**
     * Saves the conversation to a file and returns the file's size in bytes.
     *
     * [Engine.loadChat] restores it, even in another process, without computing it again. An existing file is replaced
     * only when the new one is complete.
     *
     * @throws DollopException with [Status.IO] if the file cannot be written
     */
    public suspend fun save(path: String): Long

    /** Stops the current generation, if any. Its flow ends with [Event.Done]. */
    public fun cancel()

    /** Closes the chat and stops the current generation. Further calls have no effect. */
    override fun close()
}

internal class NativeChat(number: Long, private val dispatcher: CoroutineDispatcher) : Chat {
    private val handle = Handle(number, "chat", Native::chatClose)
    private val generation = Generation(handle, dispatcher, Native::chatCancel)

    override fun send(message: String, options: GenerateOptions): Flow<Event> =
        generation.events { chat, listener -> Native.chatSend(chat, message, options.json(), listener) }

    override fun regenerate(options: GenerateOptions): Flow<Event> =
        generation.events { chat, listener -> Native.chatRegenerate(chat, options.json(), listener) }

    override suspend fun reply(message: String, options: GenerateOptions): Reply {
        val events = send(message, options).toList()
        return Reply(events.joinToString("") { it.text }, (events.last() as Event.Done).outcome)
    }

    override fun messages(): List<Message> = json.decodeFromString(Native.chatMessages(handle.number))
    override fun setMessages(messages: List<Message>): Unit = Native.chatSetMessages(handle.number, json.encodeToString(messages))
    override fun setVariables(variables: JsonObject): Unit = Native.chatSetVariables(handle.number, variables.toString())
    override fun setTime(seconds: Long): Unit = Native.chatSetTime(handle.number, seconds)
    override fun reset(): Unit = Native.chatReset(handle.number)
    override fun info(): SessionInfo = SessionInfo(Native.chatNumbers(handle.number))
    override fun cancel(): Unit = Native.chatCancel(handle.number)
    override fun close(): Unit = handle.close()

    override suspend fun save(path: String): Long {
        val chat = handle.number
        return blocking(dispatcher) { Native.chatSave(chat, path) }
    }
}
