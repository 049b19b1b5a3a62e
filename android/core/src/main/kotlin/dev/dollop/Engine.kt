// A loaded model. Owns a native handle; the native side finds out a closed one without touching freed memory.
package dev.dollop

import java.util.concurrent.atomic.AtomicLong
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext
import kotlin.coroutines.CoroutineContext

/** How far an opening is. */
public data class Progress(val stage: String, val done: Long, val total: Long)

/** A loaded model; any thread. Chats of it go on after [close], which may be called any number of times. */
public interface Engine : AutoCloseable {
    /** The model in numbers and names, as JSON. */
    public fun infoJson(): String

    /** What was done since it was opened, as JSON. */
    public fun statsJson(): String

    /** What the memory is spent on, as JSON. */
    public fun planJson(): String

    /** Begins a conversation. Its memory is allocated here. */
    public suspend fun chat(options: ChatOptions = ChatOptions()): Chat

    override fun close()

    public companion object {
        /**
         * Opens a model on [dispatcher]'s threads; a foreign one is converted first, as [onProgress] hears. Cancelling the
         * coroutine ends a conversion.
         */
        public suspend fun open(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (Progress) -> Unit = {},
        ): Engine = blocking(dispatcher, Native::engineClose) { context ->
            Native.engineOpen(
                path, options.numbers(), options.quality, options.memoryBytes ?: 0, options.cacheFolder,
                options.pipelinesFolder, progress(context, onProgress),
            )
        }.let { NativeEngine(it, dispatcher) }

        /** What opening would do with the memory, as JSON; loads nothing. */
        public suspend fun planJson(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (Progress) -> Unit = {},
        ): String = blocking(dispatcher, {}) { context ->
            val listener = progress(context, onProgress)
            Native.planJson(path, options.numbers(), options.quality, options.memoryBytes ?: 0, options.cacheFolder, listener)
        }
    }
}

private fun progress(context: CoroutineContext, hear: (Progress) -> Unit) = Listener { _, _, done, total, stage ->
    hear(Progress(stage, done, total))
    context.isActive
}

/** A native call that blocks. A handle that it makes after its coroutine is cancelled is closed. */
internal suspend fun <T> blocking(
    dispatcher: CoroutineDispatcher,
    discard: (T) -> Unit,
    call: (CoroutineContext) -> T,
): T {
    var made: T? = null
    var delivered = false
    try {
        withContext(dispatcher) { made = call(coroutineContext) }
        currentCoroutineContext().ensureActive()
        delivered = true
        @Suppress("UNCHECKED_CAST")
        return made as T
    } finally {
        if (!delivered) made?.let(discard)
    }
}

private class NativeEngine(handle: Long, private val dispatcher: CoroutineDispatcher) : Engine {
    private val handle = AtomicLong(handle)

    private fun open(): Long = handle.get().takeIf { it != 0L } ?: throw DollopException(Status.CLOSED, "the engine is closed")

    override fun infoJson(): String = Native.engineJson(open(), 0)
    override fun statsJson(): String = Native.engineJson(open(), 1)
    override fun planJson(): String = Native.engineJson(open(), 2)

    override suspend fun chat(options: ChatOptions): Chat {
        val engine = open()
        val chat = blocking(dispatcher, Native::chatClose) {
            Native.chatNew(engine, options.system, options.context ?: 0, if (options.slide) 1 else 0)
        }
        return NativeChat(chat, dispatcher)
    }

    override fun close() {
        val closing = handle.getAndSet(0)
        if (closing != 0L) Native.engineClose(closing)
    }
}
