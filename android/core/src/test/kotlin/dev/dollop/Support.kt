// Shared by the tests: the default model, texts of answers, statuses of failures, file descriptors.
package dev.dollop

import java.io.File
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.jupiter.api.AfterEach

/** The base class of tests on the default model. Checks after each that no handle is open. */
abstract class WithModel {
    protected val model: String = System.getProperty("dollop.model")
    protected val greedy: GenerateOptions = GenerateOptions(maxTokens = 24, sampling = Sampling.Greedy)

    protected suspend fun engine(precision: Precision = Precision.Default): Engine =
        Engine.open(model, EngineOptions(threads = 2, context = 512, precision = precision))

    /** Opens the model with streamed experts: the smallest budget that works, plus [more] bytes of cache. */
    protected suspend fun streaming(more: Long = 8L shl 20, bits: Int = 4): Engine {
        val options = EngineOptions(threads = 2, context = 512, precision = Precision.Exact(bits))
        val smallest = Engine.plan(model, options).smallestBytes
        return Engine.open(model, options.copy(memoryBytes = smallest + more, alwaysStream = true))
    }

    protected fun text(events: List<Event>): String = events.joinToString("") { it.text }

    /** Returns the status of the failure that [call] must have. Its message must not be empty. */
    protected suspend fun status(call: suspend () -> Unit): Status {
        val failure = assertFailsWith<DollopException> { call() }
        assertTrue(failure.message!!.length > 8, failure.message)
        return failure.status
    }

    @AfterEach
    fun noHandleIsOpen(): Unit = assertEquals(0, Native.openHandles())
}

/** Calls [use] with a file descriptor of [path]. Java does not expose the number, so it is read from /proc/self/fd. */
internal inline fun <T> withDescriptor(path: String, use: (Int) -> T): T = RandomAccessFile(path, "r").use {
    val real = File(path).toPath().toRealPath()
    val same = { fd: File -> runCatching { Files.readSymbolicLink(fd.toPath()) }.getOrNull() == real }
    use(File("/proc/self/fd").listFiles()!!.first(same).name.toInt())
}

/** Calls [use] with a temporary folder, and deletes it afterwards. */
internal inline fun <T> withFolder(use: (Path) -> T): T {
    val folder = Files.createTempDirectory("dollop")
    return try {
        use(folder)
    } finally {
        folder.toFile().deleteRecursively()
    }
}
