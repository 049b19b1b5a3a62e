// The native methods, which ffi/src/java implements. Only this file names the native library.
package dev.dollop

/** Receives events or progress, on the thread of the native call. */
internal fun interface Listener {
    /** Receives an event ([event]), or progress, whose stage is [text]. Returns whether to continue. */
    fun receive(kind: Long, token: Long, done: Long, total: Long, text: String): Boolean
}

/** Receives log messages, on the thread that logs. */
internal fun interface LogSink {
    /** Receives one message; [level] is a `DOLLOP_LOG_` of dollop.h. */
    fun receive(level: Int, target: String, message: String)
}

/** The native methods, grouped as in ffi/src/java. Handles are numbers. Failures are thrown as [DollopException]. */
internal object Native {
    init {
        System.loadLibrary("dollop")
    }

    // `options` are JSON objects ([EngineOptions.json], [GenerateOptions.json]). A context or chunk of 0 is the planned one.

    @JvmStatic external fun engineOpen(path: String, options: String, listener: Listener?): Long
    @JvmStatic external fun engineOpenFile(descriptor: Int, offset: Long, length: Long, options: String): Long
    @JvmStatic external fun planJson(path: String, options: String, listener: Listener?): String
    @JvmStatic external fun planFileJson(descriptor: Int, offset: Long, length: Long, options: String): String

    /** Returns JSON: of the model if [what] is 0, the statistics if 1, the plan if 2, the recommended sampling if 3. */
    @JvmStatic external fun engineJson(engine: Long, what: Int): String
    @JvmStatic external fun engineSetMemory(engine: Long, bytes: Long): Long
    @JvmStatic external fun engineTrim(engine: Long, level: Int): Long
    @JvmStatic external fun engineTokenize(engine: Long, text: String, addSpecial: Boolean): IntArray
    @JvmStatic external fun engineDetokenize(engine: Long, ids: IntArray, skipSpecial: Boolean): String
    @JvmStatic external fun engineRender(engine: Long, messages: String, addGenerationPrompt: Boolean): String
    @JvmStatic external fun engineClose(engine: Long)
    @JvmStatic external fun devicesJson(): String

    @JvmStatic external fun chatNew(engine: Long, system: String?, context: Int, chunk: Int, overflow: Int): Long
    @JvmStatic external fun chatLoad(engine: Long, path: String, context: Int, chunk: Int): Long
    @JvmStatic external fun chatSave(chat: Long, path: String): Long
    @JvmStatic external fun chatSend(chat: Long, message: String, options: String, listener: Listener?): DoubleArray
    @JvmStatic external fun chatRegenerate(chat: Long, options: String, listener: Listener?): DoubleArray
    @JvmStatic external fun chatMessages(chat: Long): String
    @JvmStatic external fun chatSetMessages(chat: Long, json: String)
    @JvmStatic external fun chatSetVariables(chat: Long, json: String)
    @JvmStatic external fun chatSetTime(chat: Long, seconds: Long)
    @JvmStatic external fun chatReset(chat: Long)
    @JvmStatic external fun chatNumbers(chat: Long): LongArray
    @JvmStatic external fun chatCancel(chat: Long)
    @JvmStatic external fun chatClose(chat: Long)

    @JvmStatic external fun sessionNew(engine: Long, context: Int, chunk: Int): Long
    @JvmStatic external fun sessionLoad(engine: Long, path: String, context: Int, chunk: Int): Long
    @JvmStatic external fun sessionSave(session: Long, path: String): Long
    @JvmStatic external fun sessionFork(session: Long): Long
    @JvmStatic external fun sessionComplete(session: Long, prompt: String, options: String, listener: Listener?): DoubleArray
    @JvmStatic external fun sessionGenerate(session: Long, prompt: IntArray, options: String, listener: Listener?): DoubleArray
    @JvmStatic external fun sessionLogits(session: Long, ids: IntArray): FloatArray
    @JvmStatic external fun sessionTokens(session: Long): IntArray
    @JvmStatic external fun sessionRewind(session: Long, count: Int)
    @JvmStatic external fun sessionNumbers(session: Long): LongArray
    @JvmStatic external fun sessionCancel(session: Long)
    @JvmStatic external fun sessionClose(session: Long)

    /** Sets the log sink up to [level], a `DOLLOP_LOG_` of dollop.h; a null sink removes it. */
    @JvmStatic external fun setLog(sink: LogSink?, level: Int)

    /** Returns the library's version. */
    @JvmStatic external fun version(): String

    /** Returns the number of open handles, for tests. */
    @JvmStatic external fun openHandles(): Long
}
