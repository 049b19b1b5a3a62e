// A loaded model. Owns a native handle; the native side finds out a closed one without touching freed memory.
package dev.dollop

import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.isActive

/** How far an opening is: [done] of [total] bytes of [stage], a text for people. */
public data class Progress(val stage: String, val done: Long, val total: Long)

/**
 * A part of an open file: what a system that keeps apps apart hands out in place of a path. [fd] is duplicated during the call and
 * stays the caller's. [length] 0 reaches to the end of the file; [offset] is a multiple of 64.
 */
public data class Descriptor(val fd: Int, val offset: Long = 0, val length: Long = 0)

/** How much memory a program wants back. The library says what it means on Android (`dev.dollop.android`). */
public enum class TrimLevel {
    /** The whole budget may be used again. */
    NORMAL,

    /** Half of the cache of experts beyond the smallest that works. */
    MODERATE,

    /** An eighth of that. */
    CRITICAL,

    /** The smallest that works: every expert that a token chooses is read. */
    COMPLETE,
}

/** A loaded model; any thread. Chats and sessions of it go on after [close], which may be called any number of times. */
public interface Engine : AutoCloseable {
    /** The model in numbers and names. */
    public fun info(): ModelInfo

    /** What was done since it was opened; also during a generation. */
    public fun stats(): Stats

    /** What the memory is spent on now; also during a generation. */
    public fun plan(): Plan

    /** Begins a conversation. Its memory is allocated here. */
    public suspend fun chat(options: ChatOptions = ChatOptions()): Chat

    /**
     * Goes on with a conversation that [Chat.save] wrote. [context] null is what the budget was planned for. A damaged file is
     * [Status.MALFORMED]; one of another model, precision or version is [Status.UNSUPPORTED]; the text says why.
     */
    public suspend fun loadChat(path: String, context: Int? = null): Chat

    /** Begins a timeline without a chat template. Its memory is allocated here. */
    public suspend fun session(context: Int? = null): Session

    /** Goes on with a timeline that [Session.save] or [Chat.save] wrote; otherwise as [loadChat]. */
    public suspend fun loadSession(path: String, context: Int? = null): Session

    /**
     * Gives the engine another budget of memory, also during a generation: the cache of streamed experts shrinks or grows to it,
     * when the layer in hand is computed. Texts at exact precision stay the same. Returns the bytes that went back to the system.
     * Too little is [Status.BUDGET], and nothing changes.
     */
    public suspend fun setMemory(bytes: Long): Long

    /** Gives memory back, or takes it again, as [setMemory] does; the budget stays. The same level twice does nothing the second time. */
    public suspend fun trim(level: TrimLevel): Long

    /** The tokens of a text; with [addSpecial] those in front that the model wants at the beginning of one. */
    public suspend fun tokenize(text: String, addSpecial: Boolean = false): IntArray

    /** The text of tokens; with [skipSpecial] those that are no text are left out. */
    public suspend fun detokenize(ids: IntArray, skipSpecial: Boolean = true): String

    override fun close()

    public companion object {
        /**
         * Opens a model on [dispatcher]'s threads, where its chats and sessions compute too; a foreign one is converted first, as
         * [onProgress] hears. Cancelling the coroutine ends a conversion.
         */
        public suspend fun open(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (Progress) -> Unit = {},
        ): Engine = engine(dispatcher) { context ->
            Native.engineOpen(
                path, options.numbers(), options.quality, options.memory, options.cacheFolder, options.pipelinesFolder,
                progress(context, onProgress),
            )
        }

        /** Opens a Dollop file that is open already. A foreign model needs a path. */
        public suspend fun open(
            file: Descriptor,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
        ): Engine = engine(dispatcher) {
            Native.engineOpenFile(
                file.fd, file.offset, file.length, options.numbers(), options.quality, options.memory, options.pipelinesFolder,
            )
        }

        /** What opening would do with the memory; loads nothing, but converts a foreign model as [open] does. */
        public suspend fun plan(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (Progress) -> Unit = {},
        ): Plan = json.decodeFromString(
            blocking(dispatcher) { context ->
                val listener = progress(context, onProgress)
                Native.planJson(path, options.numbers(), options.quality, options.memory, options.cacheFolder, listener)
            },
        )

        /** The same for a Dollop file that is open already. */
        public suspend fun plan(
            file: Descriptor,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
        ): Plan = json.decodeFromString(
            blocking(dispatcher) {
                Native.planFileJson(file.fd, file.offset, file.length, options.numbers(), options.quality, options.memory)
            },
        )

        /** The GPUs of this machine. Asks their drivers, which may take a second. */
        public suspend fun gpus(dispatcher: CoroutineDispatcher = Dispatchers.IO): List<Gpu> =
            json.decodeFromString(blocking(dispatcher) { Native.devicesJson() })
    }
}

private suspend fun engine(dispatcher: CoroutineDispatcher, open: (CoroutineContext) -> Long): Engine =
    NativeEngine(blocking(dispatcher, Native::engineClose, open), dispatcher)

private fun progress(context: CoroutineContext, hear: (Progress) -> Unit) = Listener { _, _, done, total, stage ->
    hear(Progress(stage, done, total))
    context.isActive
}

internal class NativeEngine(number: Long, private val dispatcher: CoroutineDispatcher) : Engine {
    internal val handle = Handle(number, "engine", Native::engineClose)

    override fun info(): ModelInfo = json.decodeFromString(Native.engineJson(handle.number, 0))
    override fun stats(): Stats = json.decodeFromString(Native.engineJson(handle.number, 1))
    override fun plan(): Plan = json.decodeFromString(Native.engineJson(handle.number, 2))

    override suspend fun chat(options: ChatOptions): Chat =
        newChat { Native.chatNew(it, options.system, options.context ?: 0, options.slide) }

    override suspend fun loadChat(path: String, context: Int?): Chat = newChat { Native.chatLoad(it, path, context ?: 0) }

    override suspend fun session(context: Int?): Session = newSession { Native.sessionNew(it, context ?: 0) }

    override suspend fun loadSession(path: String, context: Int?): Session =
        newSession { Native.sessionLoad(it, path, context ?: 0) }

    override suspend fun setMemory(bytes: Long): Long = call { Native.engineSetMemory(it, bytes) }
    override suspend fun trim(level: TrimLevel): Long = call { Native.engineTrim(it, level.ordinal) }
    override suspend fun tokenize(text: String, addSpecial: Boolean): IntArray =
        call { Native.engineTokenize(it, text, addSpecial) }

    override suspend fun detokenize(ids: IntArray, skipSpecial: Boolean): String =
        call { Native.engineDetokenize(it, ids, skipSpecial) }

    override fun close(): Unit = handle.close()

    private suspend fun <T : Any> call(discard: (T) -> Unit = {}, native: (engine: Long) -> T): T {
        val engine = handle.number
        return blocking(dispatcher, discard) { native(engine) }
    }

    private suspend fun newChat(native: (engine: Long) -> Long) = NativeChat(call(Native::chatClose, native), dispatcher)

    private suspend fun newSession(native: (engine: Long) -> Long) =
        NativeSession(call(Native::sessionClose, native), dispatcher)
}
