// Turns a native generation into a cold flow of events.
package dev.dollop

import java.util.concurrent.atomic.AtomicBoolean
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.launch

/** The most events that wait for a slow collector. After that, generation waits. */
private const val WAITING: Int = 16

/** Runs the generations of one chat or session, one at a time. [cancel] stops the native call of a handle. */
internal class Generation(
    private val handle: Handle,
    private val dispatcher: CoroutineDispatcher,
    private val cancel: (Long) -> Unit,
) {
    /** Whether a flow is being collected. Only that flow may cancel the native call. */
    private val running = AtomicBoolean()

    /** Returns the cold flow of a generation. [generate] makes the native call and returns the numbers of [outcome]. */
    fun events(generate: (handle: Long, listener: Listener) -> DoubleArray): Flow<Event> = flow {
        if (!running.compareAndSet(false, true)) throw DollopException(Status.BUSY, "another answer is being generated")
        try {
            emitAll(once(generate))
        } finally {
            // The native call has returned, so this flow can no longer cancel the call of the next one.
            running.set(false)
        }
    }

    private fun once(generate: (Long, Listener) -> DoubleArray): Flow<Event> = callbackFlow {
        val number = handle.number
        // A child of the flow: collecting ends only when the native call has returned and the handle is free.
        launch(dispatcher) {
            val numbers = generate(number) { kind, token, done, total, text ->
                // Blocks while the buffer is full; fails when the collector is gone, which ends the native call.
                trySendBlocking(event(kind, token, done, total, text)).isSuccess
            }
            trySendBlocking(Event.Done(outcome(numbers)))
            channel.close()
        }
        awaitClose {
            // Stops the native call between two events, too, as in a long prompt. A handle is a number that is
            // never reused, so a late cancel has no effect.
            try {
                cancel(number)
            } catch (e: DollopException) {
                if (e.status != Status.CLOSED) throw e
            }
        }
    }.buffer(WAITING)
}
