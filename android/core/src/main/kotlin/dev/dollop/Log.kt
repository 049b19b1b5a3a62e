// What the library logs, handed to a listener. One for the process, as the native side has it.
package dev.dollop

/** How much a message matters; those before are more urgent. */
public enum class LogLevel {
    /** What failed. */
    ERROR,

    /** What went wrong and was put right: a GPU that the CPU replaces, a read that is tried again, a conversion that is made again. */
    WARN,

    /** Models that were opened, conversions. */
    INFO,

    /** What was chosen: the memory plan, instructions, how storage is read; prompts, resizes, sessions saved and restored. */
    DEBUG,

    /** Every plane of an expert that is read or gives way. */
    TRACE,
}

/** Called for each message: [target] is the part of the library, such as "dollop::session", [message] a line for people. */
public fun interface LogListener {
    public fun log(level: LogLevel, target: String, message: String)
}

/** What the library logs: nothing, until someone [listen]s. */
public object DollopLog {
    /**
     * Has [listener] hear what is logged up to [level], in place of the one before. It runs on whichever thread logs, on several at a
     * time, threads of the library's own among them; what it throws is dropped, and so is what the library logs on its thread meanwhile.
     * From inside a listener this is [Status.BUSY].
     */
    public fun listen(level: LogLevel = LogLevel.INFO, listener: LogListener) {
        val sink = LogSink { number, target, message -> listener.log(LogLevel.entries[number - 1], target, message) }
        Native.setLog(sink, level.ordinal + 1)
    }

    /** Ends that. The listener is not running any more when this returns: hold no lock meanwhile that it takes. */
    public fun stop(): Unit = Native.setLog(null, 0)
}
