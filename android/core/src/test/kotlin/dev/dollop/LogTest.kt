// Gate 91 for Kotlin: log messages reach a listener, whatever it and other listeners throw.
package dev.dollop

import java.io.File
import java.io.RandomAccessFile
import java.util.concurrent.ConcurrentLinkedQueue
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Test

class LogTest : WithModel() {
    private data class Entry(val level: LogLevel, val target: String, val message: String, val thread: Thread)

    private val received = ConcurrentLinkedQueue<Entry>()
    private val listener = LogListener { level, target, message -> received += Entry(level, target, message, Thread.currentThread()) }

    /** Returns the messages since the last call. */
    private fun entries(): List<Entry> = generateSequence { received.poll() }.toList()

    @AfterEach
    fun removeListener() = DollopLog.stop()

    @Test
    fun aListenerReceivesMessagesUpToItsLevelUntilItIsRemoved() = runBlocking<Unit> {
        DollopLog.listen(listener = listener)
        engine().close()
        val opened = entries()
        assertTrue(opened.any { it.level == LogLevel.INFO && it.target.startsWith("dollop::") && model in it.message }, "$opened")
        assertTrue(opened.all { it.level <= LogLevel.INFO }, "$opened")
        DollopLog.listen(LogLevel.DEBUG, listener)
        engine().close()
        assertTrue(entries().any { it.level == LogLevel.DEBUG && it.message.startsWith("memory: ") })
        DollopLog.stop()
        engine().close()
        assertEquals(emptyList(), entries(), "after it was removed")
    }

    @Test
    fun exceptionsOfAListenerAreDroppedAndItCannotReplaceItself() = runBlocking<Unit> {
        val statuses = ConcurrentLinkedQueue<Status>()
        DollopLog.listen(LogLevel.DEBUG) { _, _, _ ->
            statuses += assertFailsWith<DollopException> { DollopLog.stop() }.status
            error("on purpose")
        }
        engine().use { engine ->
            assertTrue(statuses.isNotEmpty() && statuses.all { it == Status.BUSY }, "$statuses")
            val before = statuses.size
            assertTrue("Paris" in engine.chat(ChatOptions(system = "You are brief.")).use { text(it.send("What is the capital of France?", greedy).toList()) })
            assertTrue(statuses.size > before)
        }
    }

    /** An exception of an event listener is pending until its call ends. Messages logged meanwhile arrive, and do not lose it. */
    @Test
    fun aPendingExceptionOfAnEventListenerIsKept() = runBlocking<Unit> {
        streaming().use { engine ->
            val session = engine.session()
            val number = (session as NativeSession).handle.number
            DollopLog.listen(LogLevel.TRACE, listener)
            val thrown = assertFailsWith<IllegalStateException> {
                Native.sessionComplete(number, "Once", GenerateOptions(maxTokens = 8).json()) { _, _, _, _, _ -> error("mine") }
            }
            assertEquals("mine", thrown.message)
            assertTrue(entries().any { it.level == LogLevel.TRACE })
            session.close()
        }
    }

    /** The bytes of experts change while the engine is open: each is read again, and a message is logged. */
    @Test
    fun repeatedReadsAreLogged() = runBlocking<Unit> {
        withFolder { folder ->
            val copy = folder.resolve("copy.gguf").toString()
            File(model).copyTo(File(copy))
            val options = EngineOptions(threads = 2, context = 512, precision = Precision.Exact(4))
            val smallest = Engine.plan(copy, options).smallestBytes
            Engine.open(copy, options.copy(memoryBytes = smallest + (8 shl 20), alwaysStream = true)).use { engine ->
                val length = File(copy).length()
                RandomAccessFile(copy, "rw").use {
                    it.seek(length / 4)
                    it.write(ByteArray((length / 2).toInt()) { 0x5a })
                }
                DollopLog.listen(LogLevel.WARN, listener)
                val failure = status { engine.session().use { it.complete("Once upon a time", greedy).toList() } }
                val again = entries()
                assertEquals(Status.IO, failure)
                assertTrue(again.any { it.level == LogLevel.WARN && "read again" in it.message }, "$again")
            }
        }
    }
}
