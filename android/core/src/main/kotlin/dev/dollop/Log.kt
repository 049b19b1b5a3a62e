// Passes the library's log messages to a listener. There is one per process, as in the native library.
package dev.dollop

/** The severity of a log message, most severe first. */
public enum class LogLevel {
    /** Failures. */
    ERROR,

    /** Problems that were solved: a GPU that the CPU replaces, a read or a conversion that is repeated. */
    WARN,

    /** Opened models, and conversions. */
    INFO,

    /**
     * Choices: the memory plan, the instruction set, the method of reading. Also prompts, resizes, and sessions saved
     * and restored.
     */
    DEBUG,

    /** Every plane of an expert that is read or evicted. */
    TRACE,
}

/** Receives the library's log messages. */
public fun interface LogListener {
    /**
     * Receives one message, on the thread that logs it.
     *
     * @param target the part of the library, such as "dollop::session"
     * @param message one line for display
     */
    public fun log(level: LogLevel, target: String, message: String)
}

/** The library's log. Messages go nowhere until [listen] sets a listener. */
public object DollopLog {
    /**
     * Sets the listener for messages up to [level], and replaces the previous one.
     *
     * The listener runs on the thread that logs, which may be one of the library's own, and on several at a time. Its
     * exceptions are dropped. So are messages that the library logs on its thread while it runs.
     *
     * @throws DollopException with [Status.BUSY] if called from a listener
     */
    public fun listen(level: LogLevel = LogLevel.INFO, listener: LogListener) {
        val sink = LogSink { number, target, message -> listener.log(LogLevel.entries[number - 1], target, message) }
        Native.setLog(sink, level.ordinal + 1)
    }

    /**
     * Removes the listener. When this returns, the listener is not running. This waits for it, so the caller must not
     * hold a lock that the listener takes.
     *
     * @throws DollopException with [Status.BUSY] if called from a listener
     */
    public fun stop(): Unit = Native.setLog(null, 0)
}
