// Failures: the statuses of dollop.h, as an enum.
package dev.dollop

/** What kind of failure it is, and so what an app can do; docs/embedding.md has the table. */
public enum class Status(internal val number: Int) {
    IO(1),
    MALFORMED(2),
    UNSUPPORTED(3),
    INVALID(4),
    TEMPLATE(5),
    CONTEXT_FULL(6),
    BUDGET(7),
    NOT_FINITE(8),
    CANCELLED(9),
    DEVICE(10),
    OTHER(99),
    NULL(100),
    CLOSED(103),
    WRONG_HANDLE(104),
    BUSY(105),
    PANIC(108),
    ;

    internal companion object {
        fun of(number: Int): Status = entries.firstOrNull { it.number == number } ?: OTHER
    }
}

/** A call that failed. [message] says why, for people. */
public class DollopException internal constructor(public val status: Status, message: String) : RuntimeException(message) {
    /** Made by the native library. */
    @Suppress("unused")
    internal constructor(number: Int, text: String) : this(Status.of(number), text)
}
