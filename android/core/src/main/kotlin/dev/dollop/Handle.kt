// What owns a native value: a number that is used once, closed once.
package dev.dollop

import java.util.concurrent.atomic.AtomicLong
import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext

/** The native side knows a closed number from an open one without touching freed memory, so that any call may race with [close]. */
internal class Handle(number: Long, private val what: String, private val free: (Long) -> Unit) : AutoCloseable {
    private val current = AtomicLong(number)

    /** @throws DollopException with [Status.CLOSED] once it is closed. */
    val number: Long
        get() = current.get().takeIf { it != 0L } ?: throw DollopException(Status.CLOSED, "the $what is closed")

    override fun close() {
        val closing = current.getAndSet(0)
        if (closing != 0L) free(closing)
    }
}

/** A native call that blocks, on [dispatcher]'s threads. A handle that it makes after its coroutine is cancelled is discarded. */
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
