// How a native generation becomes a cold flow of events.
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

/** Events that wait for a slow collector; then generation waits for it. */
private const val WAITING: Int = 16

/** The generations of one chat or session: one at a time. [cancel] stops the native call of a handle. */
internal class Generation(
    private val handle: Handle,
    private val dispatcher: CoroutineDispatcher,
    private val cancel: (Long) -> Unit,
) {
    /** Whether a flow is collected: only this flow may cancel the native call. */
    private val running = AtomicBoolean()

    fun events(generate: (handle: Long, listener: Listener) -> DoubleArray): Flow<Event> = flow {
        if (!running.compareAndSet(false, true)) throw DollopException(Status.BUSY, "another answer is being generated")
        try {
            emitAll(once(generate))
        } finally {
            // The native call has returned and cannot be cancelled any more: another flow's may begin.
            running.set(false)
        }
    }

    private fun once(generate: (Long, Listener) -> DoubleArray): Flow<Event> = callbackFlow {
        val number = handle.number
        // A child of the flow: collecting ends when the native call has returned, so that the handle is free then.
        launch(dispatcher) {
            val numbers = generate(number) { kind, token, done, total, text ->
                // Blocks while the collector is behind, and fails once it is gone.
                trySendBlocking(event(kind, token, done, total, text)).isSuccess
            }
            trySendBlocking(done(numbers))
            channel.close()
        }
        awaitClose {
            // Between two events, as in a long prompt. The handle is a number that is never used twice: a late one hits nothing.
            try {
                cancel(number)
            } catch (e: DollopException) {
                if (e.status != Status.CLOSED) throw e
            }
        }
    }.buffer(WAITING)
}
