// The native library: what ffi/src/java.rs implements. The only file that names it.
package dev.dollop

/** Hears of events or progress on the thread of the native call; returns whether to go on. */
internal fun interface Listener {
    fun hear(kind: Long, token: Long, done: Long, total: Long, text: String): Boolean
}

internal object Native {
    init {
        System.loadLibrary("dollop")
    }

    @JvmStatic external fun engineOpen(
        path: String, numbers: IntArray, quality: Float, memory: Long, cache: String?, pipelines: String?, listener: Listener?,
    ): Long

    @JvmStatic external fun planJson(
        path: String, numbers: IntArray, quality: Float, memory: Long, cache: String?, listener: Listener?,
    ): String

    /** 0 for the model, 1 for statistics, 2 for the plan. */
    @JvmStatic external fun engineJson(engine: Long, what: Int): String
    @JvmStatic external fun engineClose(engine: Long)

    @JvmStatic external fun chatNew(engine: Long, system: String?, context: Int, slide: Int): Long
    @JvmStatic external fun chatSend(
        chat: Long, message: String, maxTokens: Int, sampling: String?, stop: Array<String>, listener: Listener?,
    ): DoubleArray
    @JvmStatic external fun chatMessages(chat: Long): String
    @JvmStatic external fun chatSetTime(chat: Long, seconds: Long)
    @JvmStatic external fun chatReset(chat: Long)
    @JvmStatic external fun chatCancel(chat: Long)
    @JvmStatic external fun chatClose(chat: Long)

    @JvmStatic external fun openHandles(): Long
}
