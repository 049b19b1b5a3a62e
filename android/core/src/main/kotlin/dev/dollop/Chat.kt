// A conversation. Its answers are cold flows: collecting one generates, cancelling the collector stops.
package dev.dollop

import java.util.concurrent.atomic.AtomicBoolean
import java.util.concurrent.atomic.AtomicLong
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.launch

/** Events that wait for a slow collector; then generation waits for it. */
private const val WAITING: Int = 16

/** A conversation; one answer at a time, from any thread. [close] and [cancel] may come at any time, from any thread. */
public interface Chat : AutoCloseable {
    /**
     * Says [message] and generates the answer while the flow is collected. A slow collector slows generation down. When its
     * collector is cancelled, generation stops, and what was said so far stays in the conversation. The last event is
     * [Event.Done]. A second collection says it again.
     */
    public fun send(message: String, options: GenerateOptions = GenerateOptions()): Flow<Event>

    /** The conversation, as a JSON array of objects with role and content. */
    public fun messagesJson(): String

    /** The local time, in seconds since 1970 as if the clock showed UTC, for templates that say it. */
    public fun setTime(seconds: Long)

    /** Forgets the conversation but not the system prompt. */
    public fun reset()

    /** Stops the answer that is generated now; its flow ends with [Event.Done]. */
    public fun cancel()

    /** Any number of times. An answer that is generated now stops. */
    override fun close()
}

internal class NativeChat(handle: Long, private val dispatcher: CoroutineDispatcher) : Chat {
    private val handle = AtomicLong(handle)

    private fun open(): Long = handle.get().takeIf { it != 0L } ?: throw DollopException(Status.CLOSED, "the chat is closed")

    /** Whether an answer is collected: only its own flow may cancel it. */
    private val generating = AtomicBoolean()

    override fun send(message: String, options: GenerateOptions): Flow<Event> = flow {
        if (!generating.compareAndSet(false, true)) throw DollopException(Status.BUSY, "this chat is generating another answer")
        try {
            emitAll(events(message, options))
        } finally {
            // The native call has returned and cannot be cancelled any more: another flow's may begin.
            generating.set(false)
        }
    }

    private fun events(message: String, options: GenerateOptions): Flow<Event> = callbackFlow {
        val chat = open()
        // A child of the flow: collecting ends when the native call has returned, so that the chat is free then.
        launch(dispatcher) {
            val stop = options.stop.toTypedArray()
            val numbers = Native.chatSend(chat, message, options.maxTokens, options.sampling.json(), stop) { kind, token, done, total, text ->
                // Blocks while the collector is behind, and fails once it is gone.
                trySendBlocking(event(kind, token, done, total, text)).isSuccess
            }
            trySendBlocking(done(numbers))
            channel.close()
        }
        awaitClose {
            // Between two events, as in a long prompt. The handle is a number that is never used twice: a late one hits nothing.
            try {
                Native.chatCancel(chat)
            } catch (e: DollopException) {
                if (e.status != Status.CLOSED) throw e
            }
        }
    }.buffer(WAITING)

    override fun messagesJson(): String = Native.chatMessages(open())
    override fun setTime(seconds: Long): Unit = Native.chatSetTime(open(), seconds)
    override fun reset(): Unit = Native.chatReset(open())
    override fun cancel(): Unit = Native.chatCancel(open())

    override fun close() {
        val closing = handle.getAndSet(0)
        if (closing != 0L) Native.chatClose(closing)
    }
}
