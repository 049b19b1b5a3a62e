// A loaded model. Owns a native handle; the native side detects a closed one without reading freed memory.
package dev.dollop

import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.isActive

/**
 * The progress of opening a model.
 *
 * @property stage the current stage, for display
 * @property done bytes done
 * @property total bytes in all
 */
public data class OpenProgress(val stage: String, val done: Long, val total: Long)

/**
 * A part of an open file, for systems that give sandboxed apps a file descriptor instead of a path.
 *
 * @property fd the file descriptor. The call duplicates it; the caller still owns it and may close it afterwards.
 * @property offset where the part begins, in bytes; a multiple of 64
 * @property length the part's length in bytes; 0 for all bytes up to the end of the file
 */
public data class Descriptor(val fd: Int, val offset: Long = 0, val length: Long = 0)

/**
 * How much memory an engine gives back. A level sets the size of the expert cache; it does not shrink it by an amount.
 * The package `dev.dollop.android` maps Android's levels to these.
 */
public enum class TrimLevel {
    /** The cache may use the whole budget. */
    NORMAL,

    /** The smallest cache that works, plus half of what the budget allows beyond it. */
    MODERATE,

    /** The smallest cache that works, plus an eighth of what the budget allows beyond it. */
    CRITICAL,

    /** The smallest cache that works. Every expert that a token chooses is then read. */
    COMPLETE,
}

/**
 * A loaded model.
 *
 * Methods may be called from any thread at any time. Chats and sessions of the engine stay usable after [close]; the
 * methods of the engine itself then fail with [Status.CLOSED].
 */
public interface Engine : AutoCloseable {
    /** Returns the model's names, dimensions and sizes. */
    public fun info(): ModelInfo

    /** Returns the counters since the engine was opened. May be called during a generation. */
    public fun stats(): Stats

    /** Returns the sampling that the model's file recommends, with the library's defaults for what it leaves out. */
    public fun sampling(): Sampling

    /** Returns what the memory is used for now. May be called during a generation. */
    public fun plan(): Plan

    /**
     * Creates a conversation and allocates its memory.
     *
     * @throws DollopException with [Status.INVALID] if the context is longer than the budget or the model allows
     */
    public suspend fun chat(options: ChatOptions = ChatOptions()): Chat

    /**
     * Restores a conversation that [Chat.save] wrote.
     *
     * @param context positions of the KV cache; null for the number that the budget was planned for
     * @param chunk tokens per prefill chunk; null for the number that the budget was planned for
     * @throws DollopException with [Status.MALFORMED] for a damaged file, [Status.UNSUPPORTED] for a file of another
     * model, precision or version (the message says which), [Status.CONTEXT_FULL] if its tokens do not fit [context]
     */
    public suspend fun loadChat(path: String, context: Int? = null, chunk: Int? = null): Chat

    /**
     * Creates an empty session, which uses no chat template, and allocates its memory.
     *
     * @param context positions of the KV cache; null for the number that the budget was planned for
     * @param chunk tokens per prefill chunk; null for the number that the budget was planned for. From 32 on, results do
     * not depend on it.
     */
    public suspend fun session(context: Int? = null, chunk: Int? = null): Session

    /** Restores a session that [Session.save] or [Chat.save] wrote. Otherwise the same as [loadChat]. */
    public suspend fun loadSession(path: String, context: Int? = null, chunk: Int? = null): Session

    /**
     * Sets another memory budget and returns the bytes that were given back to the system.
     *
     * May be called during a generation. The cache of streamed experts shrinks or grows to fit when the current layer
     * is done. Text at exact precision stays the same.
     *
     * @param bytes the new budget
     * @throws DollopException with [Status.BUDGET] if the budget is too small; nothing changes then
     */
    public suspend fun setMemory(bytes: Long): Long

    /**
     * Gives memory back to the system, or takes it again, and returns the bytes that were given back. The budget stays.
     * The same level twice has no further effect. Otherwise the same as [setMemory].
     */
    public suspend fun trim(level: TrimLevel): Long

    /**
     * Returns the token ids of a text.
     *
     * @param addSpecial whether to begin with the tokens that the model expects at the beginning of a text
     */
    public suspend fun tokenize(text: String, addSpecial: Boolean = false): IntArray

    /**
     * Returns the text of token ids.
     *
     * @param skipSpecial whether to omit special tokens, which are not text
     * @throws DollopException with [Status.INVALID] for an id outside the vocabulary
     */
    public suspend fun detokenize(ids: IntArray, skipSpecial: Boolean = true): String

    /**
     * Renders messages with the model's chat template.
     *
     * @param addGenerationPrompt whether the text ends with the beginning of an answer
     * @throws DollopException with [Status.TEMPLATE] if the template rejects the messages, [Status.UNSUPPORTED] if the
     * model has no chat template
     */
    public suspend fun render(messages: List<Message>, addGenerationPrompt: Boolean = true): String

    /** Closes the engine. Its chats and sessions stay usable. Further calls have no effect. */
    override fun close()

    /** Opens and plans models, and lists GPUs. */
    public companion object {
        /**
         * Opens a model. A foreign model is converted first, into [EngineOptions.cacheFolder].
         *
         * Cancelling the coroutine ends a conversion. An exception of [onProgress] also ends it, and is thrown by this
         * function.
         *
         * @param dispatcher runs the blocking native calls of the engine, its chats and its sessions
         * @param onProgress receives the progress of a conversion, on a thread of [dispatcher]
         * @throws DollopException with [Status.BUDGET] if the memory budget is too small for the model,
         * [Status.UNSUPPORTED] for a foreign model without a [EngineOptions.cacheFolder]
         */
        public suspend fun open(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (OpenProgress) -> Unit = {},
        ): Engine = engine(dispatcher) { context ->
            Native.engineOpen(path, options.json(), progress(context, onProgress))
        }

        /** Opens a Dollop file from a file descriptor. Foreign models can only be opened from a path. */
        public suspend fun open(
            file: Descriptor,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
        ): Engine = engine(dispatcher) {
            Native.engineOpenFile(file.fd, file.offset, file.length, options.json())
        }

        /**
         * Plans how [open] would use the memory. Loads nothing, but converts a foreign model as [open] does.
         *
         * @throws DollopException with [Status.BUDGET] if the memory budget is too small for the model
         */
        public suspend fun plan(
            path: String,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
            onProgress: (OpenProgress) -> Unit = {},
        ): Plan = json.decodeFromString(
            blocking(dispatcher) { context ->
                Native.planJson(path, options.json(), progress(context, onProgress))
            },
        )

        /** Plans how [open] would use the memory for a Dollop file from a file descriptor. */
        public suspend fun plan(
            file: Descriptor,
            options: EngineOptions = EngineOptions(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
        ): Plan = json.decodeFromString(
            blocking(dispatcher) {
                Native.planFileJson(file.fd, file.offset, file.length, options.json())
            },
        )

        /** Returns this machine's GPUs; empty if there are none. Querying their drivers may take a second. */
        public suspend fun devices(dispatcher: CoroutineDispatcher = Dispatchers.IO): List<Device> =
            json.decodeFromString(blocking(dispatcher) { Native.devicesJson() })

        /** The version of the native library, such as "0.1.0". */
        public val libraryVersion: String get() = Native.version()
    }
}

private suspend fun engine(dispatcher: CoroutineDispatcher, open: (CoroutineContext) -> Long): Engine =
    NativeEngine(blocking(dispatcher, Native::engineClose, open), dispatcher)

private fun progress(context: CoroutineContext, receive: (OpenProgress) -> Unit) = Listener { _, _, done, total, stage ->
    receive(OpenProgress(stage, done, total))
    context.isActive
}

internal class NativeEngine(number: Long, private val dispatcher: CoroutineDispatcher) : Engine {
    internal val handle = Handle(number, "engine", Native::engineClose)

    override fun info(): ModelInfo = json.decodeFromString(Native.engineJson(handle.number, 0))
    override fun stats(): Stats = json.decodeFromString(Native.engineJson(handle.number, 1))
    override fun sampling(): Sampling = json.decodeFromString(Native.engineJson(handle.number, 3))
    override fun plan(): Plan = json.decodeFromString(Native.engineJson(handle.number, 2))

    override suspend fun chat(options: ChatOptions): Chat = newChat {
        Native.chatNew(it, options.system, options.context ?: 0, options.chunk ?: 0, options.overflow.ordinal)
    }

    override suspend fun loadChat(path: String, context: Int?, chunk: Int?): Chat =
        newChat { Native.chatLoad(it, path, context ?: 0, chunk ?: 0) }

    override suspend fun session(context: Int?, chunk: Int?): Session =
        newSession { Native.sessionNew(it, context ?: 0, chunk ?: 0) }

    override suspend fun loadSession(path: String, context: Int?, chunk: Int?): Session =
        newSession { Native.sessionLoad(it, path, context ?: 0, chunk ?: 0) }

    override suspend fun setMemory(bytes: Long): Long = call { Native.engineSetMemory(it, bytes) }
    override suspend fun trim(level: TrimLevel): Long = call { Native.engineTrim(it, level.ordinal) }
    override suspend fun tokenize(text: String, addSpecial: Boolean): IntArray =
        call { Native.engineTokenize(it, text, addSpecial) }

    override suspend fun detokenize(ids: IntArray, skipSpecial: Boolean): String =
        call { Native.engineDetokenize(it, ids, skipSpecial) }

    override suspend fun render(messages: List<Message>, addGenerationPrompt: Boolean): String =
        call { Native.engineRender(it, json.encodeToString(messages), addGenerationPrompt) }

    override fun close(): Unit = handle.close()

    private suspend fun <T : Any> call(discard: (T) -> Unit = {}, native: (engine: Long) -> T): T {
        val engine = handle.number
        return blocking(dispatcher, discard) { native(engine) }
    }

    private suspend fun newChat(native: (engine: Long) -> Long) = NativeChat(call(Native::chatClose, native), dispatcher)

    private suspend fun newSession(native: (engine: Long) -> Long) =
        NativeSession(call(Native::sessionClose, native), dispatcher)
}
