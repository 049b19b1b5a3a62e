// Owners of native values. A handle is a number that is used once and closed once.
package dev.dollop

import java.util.concurrent.atomic.AtomicLong
import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext

/**
 * Owns a native value. The native side detects a closed handle without reading freed memory, so any call may race with
 * [close]. [what] names the value in messages, and [free] closes the native handle.
 */
internal class Handle(number: Long, private val what: String, private val free: (Long) -> Unit) : AutoCloseable {
    private val current = AtomicLong(number)

    /**
     * The native handle.
     *
     * @throws DollopException with [Status.CLOSED] after [close]
     */
    val number: Long
        get() = current.get().takeIf { it != 0L } ?: throw DollopException(Status.CLOSED, "the $what is closed")

    /** Frees the native value. May be called from any thread; further calls have no effect. */
    override fun close() {
        val closing = current.getAndSet(0)
        if (closing != 0L) free(closing)
    }
}

/**
 * Runs a blocking native call on [dispatcher]'s threads and returns its result. If the coroutine is cancelled before the
 * result is delivered, [discard] receives it, to close a new handle.
 */
internal suspend fun <T : Any> blocking(
    dispatcher: CoroutineDispatcher,
    discard: (T) -> Unit = {},
    call: (CoroutineContext) -> T,
): T {
    var made: T? = null
    var delivered = false
    try {
        val result = withContext(dispatcher) { call(coroutineContext).also { made = it } }
        currentCoroutineContext().ensureActive()
        delivered = true
        return result
    } finally {
        if (!delivered) made?.let(discard)
    }
}
