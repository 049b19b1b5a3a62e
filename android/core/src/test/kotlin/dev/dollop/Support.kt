// What the tests share: the default model, texts of answers, statuses of failures, descriptors.
package dev.dollop

import java.io.File
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.Path
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.jupiter.api.AfterEach

/** Tests on the default model. Each ends with no handle open. */
abstract class WithModel {
    protected val model: String = System.getProperty("dollop.model")
    protected val greedy: GenerateOptions = GenerateOptions(maxTokens = 24, sampling = Sampling.Greedy)

    protected suspend fun engine(precision: Precision = Precision.Default): Engine =
        Engine.open(model, EngineOptions(threads = 2, context = 512, precision = precision))

    /** Experts are streamed: the smallest budget that works, and [more] bytes of cache beyond. */
    protected suspend fun streaming(more: Long = 8L shl 20, bits: Int = 4): Engine {
        val options = EngineOptions(threads = 2, context = 512, precision = Precision.Exact(bits))
        val smallest = Engine.plan(model, options).smallestBytes
        return Engine.open(model, options.copy(memoryBytes = smallest + more, alwaysStream = true))
    }

    protected fun text(events: List<Event>): String = events.joinToString("") { it.text }

    /** The status of a failure, which has a text. */
    protected suspend fun status(call: suspend () -> Unit): Status {
        val failure = assertFailsWith<DollopException> { call() }
        assertTrue(failure.message!!.length > 8, failure.message)
        return failure.status
    }

    @AfterEach
    fun nothingIsForgotten(): Unit = assertEquals(0, Native.openHandles())
}

/** Calls [use] with the descriptor that this process has for [path]; Java keeps the number to itself, Linux does not. */
internal inline fun <T> withDescriptor(path: String, use: (Int) -> T): T = RandomAccessFile(path, "r").use {
    val real = File(path).toPath().toRealPath()
    val same = { fd: File -> runCatching { Files.readSymbolicLink(fd.toPath()) }.getOrNull() == real }
    use(File("/proc/self/fd").listFiles()!!.first(same).name.toInt())
}

/** A folder that is gone afterwards. */
internal inline fun <T> withFolder(use: (Path) -> T): T {
    val folder = Files.createTempDirectory("dollop")
    return try {
        use(folder)
    } finally {
        folder.toFile().deleteRecursively()
    }
}
