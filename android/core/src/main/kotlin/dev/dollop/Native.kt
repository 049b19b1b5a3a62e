// The native library: what ffi/src/java implements, file by file. The only file that names it.
package dev.dollop

/** Hears of events or progress on the thread of the native call; returns whether to go on. */
internal fun interface Listener {
    fun hear(kind: Long, token: Long, done: Long, total: Long, text: String): Boolean
}

/** Hears of the log, on whichever thread logs; [level] is the number of dollop.h. */
internal fun interface LogSink {
    fun hear(level: Int, target: String, message: String)
}

internal object Native {
    init {
        System.loadLibrary("dollop")
    }

    @JvmStatic external fun engineOpen(
        path: String, numbers: IntArray, quality: Float, memory: Long, cache: String?, pipelines: String?, listener: Listener?,
    ): Long
    @JvmStatic external fun engineOpenFile(
        descriptor: Int, offset: Long, length: Long, numbers: IntArray, quality: Float, memory: Long, pipelines: String?,
    ): Long
    @JvmStatic external fun planJson(
        path: String, numbers: IntArray, quality: Float, memory: Long, cache: String?, listener: Listener?,
    ): String
    @JvmStatic external fun planFileJson(
        descriptor: Int, offset: Long, length: Long, numbers: IntArray, quality: Float, memory: Long,
    ): String

    /** 0 for the model, 1 for statistics, 2 for the plan. */
    @JvmStatic external fun engineJson(engine: Long, what: Int): String
    @JvmStatic external fun engineSetMemory(engine: Long, bytes: Long): Long
    @JvmStatic external fun engineTrim(engine: Long, level: Int): Long
    @JvmStatic external fun engineTokenize(engine: Long, text: String, addSpecial: Boolean): IntArray
    @JvmStatic external fun engineDetokenize(engine: Long, ids: IntArray, skipSpecial: Boolean): String
    @JvmStatic external fun engineClose(engine: Long)
    @JvmStatic external fun devicesJson(): String

    @JvmStatic external fun chatNew(engine: Long, system: String?, context: Int, slide: Boolean): Long
    @JvmStatic external fun chatLoad(engine: Long, path: String, context: Int): Long
    @JvmStatic external fun chatSave(chat: Long, path: String): Long
    @JvmStatic external fun chatSend(
        chat: Long, message: String, maxTokens: Int, sampling: String?, stop: Array<String>, listener: Listener?,
    ): DoubleArray
    @JvmStatic external fun chatRegenerate(
        chat: Long, maxTokens: Int, sampling: String?, stop: Array<String>, listener: Listener?,
    ): DoubleArray
    @JvmStatic external fun chatMessages(chat: Long): String
    @JvmStatic external fun chatSetMessages(chat: Long, json: String)
    @JvmStatic external fun chatSetVariables(chat: Long, json: String)
    @JvmStatic external fun chatSetTime(chat: Long, seconds: Long)
    @JvmStatic external fun chatReset(chat: Long)
    @JvmStatic external fun chatNumbers(chat: Long): LongArray
    @JvmStatic external fun chatCancel(chat: Long)
    @JvmStatic external fun chatClose(chat: Long)

    @JvmStatic external fun sessionNew(engine: Long, context: Int): Long
    @JvmStatic external fun sessionLoad(engine: Long, path: String, context: Int): Long
    @JvmStatic external fun sessionSave(session: Long, path: String): Long
    @JvmStatic external fun sessionFork(session: Long): Long
    @JvmStatic external fun sessionComplete(
        session: Long, prompt: String, maxTokens: Int, sampling: String?, stop: Array<String>, listener: Listener?,
    ): DoubleArray
    @JvmStatic external fun sessionGenerate(
        session: Long, prompt: IntArray, maxTokens: Int, sampling: String?, stop: Array<String>, listener: Listener?,
    ): DoubleArray
    @JvmStatic external fun sessionTokens(session: Long): IntArray
    @JvmStatic external fun sessionRewind(session: Long, count: Int)
    @JvmStatic external fun sessionNumbers(session: Long): LongArray
    @JvmStatic external fun sessionCancel(session: Long)
    @JvmStatic external fun sessionClose(session: Long)

    @JvmStatic external fun setLog(sink: LogSink?, level: Int)

    @JvmStatic external fun openHandles(): Long
}
