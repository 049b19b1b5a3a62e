// Failures: the statuses of dollop.h as an enum.
package dev.dollop

/** The kind of a failure, which determines what an app can do. docs/embedding.md has a table of remedies. */
public enum class Status(internal val number: Int) {
    /** The operating system reported an error: no such file, no permission, no space, a failed read. */
    IO(1),

    /** A file contradicts itself or its format: it is truncated, corrupted or hostile. */
    MALFORMED(2),

    /** A valid file or request that this version cannot run. */
    UNSUPPORTED(3),

    /** An option or argument is out of range. The message gives the valid range. */
    INVALID(4),

    /** The model's chat template does not parse, or rejects the messages. */
    TEMPLATE(5),

    /** The prompt or the conversation does not fit the context. */
    CONTEXT_FULL(6),

    /** The memory budget is too small for this model. The message gives the smallest one that works. */
    BUDGET(7),

    /** The model computes values that are not finite numbers. */
    NOT_FINITE(8),

    /** A call that has no partial result was cancelled. */
    CANCELLED(9),

    /** The GPU is missing, was lost, is out of memory, or rejected a command. */
    DEVICE(10),

    /** A failure of a kind that this version has no name for. */
    OTHER(99),

    /** A pointer was null: a bug in this library. */
    NULL(100),

    /** The engine, chat or session is closed. */
    CLOSED(103),

    /** A handle has the wrong type: a bug in this library. */
    WRONG_HANDLE(104),

    /** Another call on the same chat or session has not returned, or a log listener tried to replace itself. */
    BUSY(105),

    /** The native library panicked, which is a bug. The chat or session of the call is unusable and must be closed. */
    PANIC(108),
    ;

    internal companion object {
        /** Returns the status with a number of dollop.h, or [OTHER] if there is none. */
        fun of(number: Int): Status = entries.firstOrNull { it.number == number } ?: OTHER
    }
}

/**
 * Thrown when a call of the library fails. [message] is one line for display: what failed and why.
 *
 * @property status the kind of failure
 */
public class DollopException internal constructor(public val status: Status, message: String) : RuntimeException(message) {
    /** Called by the native library. */
    @Suppress("unused")
    internal constructor(number: Int, text: String) : this(Status.of(number), text)
}
