// Gate 83: the Kotlin library on the default model: streaming, cancelling, closing while it generates, errors.
package dev.dollop

import java.util.concurrent.atomic.AtomicInteger
import kotlin.random.Random
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertTrue
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.yield
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Test

class ChatTest {
    private val model: String = System.getProperty("dollop.model")
    private val greedy = GenerateOptions(maxTokens = 24, sampling = Sampling.Greedy)

    private suspend fun engine() = Engine.open(model, EngineOptions(threads = 2, context = 512))

    private fun text(events: List<Event>) = events.joinToString("") {
        when (it) {
            is Event.Token -> it.text
            is Event.Rest -> it.text
            else -> ""
        }
    }

    @AfterEach
    fun nothingIsForgotten() = assertEquals(0, Native.openHandles())

    @Test
    fun anAnswerStreams() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat(ChatOptions(system = "You are brief.")).use { chat ->
                val events = chat.send("What is the capital of France?", greedy).toList()
                assertTrue("Paris" in text(events), text(events))
                assertIs<Event.Prefill>(events.first())
                val done = assertIs<Event.Done>(events.last())
                assertEquals(events.count { it is Event.Token }, done.generatedTokens)
                assertTrue(done.promptTokens > 10 && done.decodeSeconds > 0)
                assertTrue("You are brief." in chat.messagesJson() && "Paris" in chat.messagesJson())
                // The same flow again says it again; a slow collector gets the same events.
                chat.reset()
                val slow = chat.send("What is the capital of France?", greedy).onEach { repeat(50) { yield() } }.toList()
                assertEquals(text(events), text(slow))
                chat.setTime(1764374400)
            }
        }
    }

    @Test
    fun aCollectorThatLeavesStopsTheAnswerAndTheChatGoesOn() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat().use { chat ->
                val long = GenerateOptions(maxTokens = 400, sampling = Sampling.Greedy)
                val some = chat.send("Tell me a story.", long).filterIsInstance<Event.Token>().take(3).toList()
                assertEquals(3, some.size)
                // Not busy: the native call has returned.
                assertTrue("Tell me a story." in chat.messagesJson())
                val job = launch(Dispatchers.Default) { chat.send("And another.", long).collect {} }
                while (runCatching { chat.messagesJson() }.isSuccess && job.isActive) yield()
                job.cancel()
                job.join()
                assertEquals(3, chat.send("Hello", greedy.copy(maxTokens = 3)).toList().count { it is Event.Token })
                // Cancelled by name, the flow ends as usual.
                val done = chat.send("A poem.", long).onEach { if (it is Event.Token) chat.cancel() }.toList().last()
                assertEquals(Stop.CANCELLED, assertIs<Event.Done>(done).stop)
            }
        }
    }

    @Test
    fun failuresHaveAStatusAndAText() = runBlocking<Unit> {
        suspend fun status(call: suspend () -> Unit) = assertFailsWith<DollopException> { call() }.also {
            assertTrue(it.message!!.length > 8)
        }.status
        assertEquals(Status.IO, status { Engine.open("no-such-file") })
        assertEquals(Status.BUDGET, status { Engine.planJson(model, EngineOptions(memoryBytes = 1)) })
        assertEquals(Status.INVALID, status { Engine.open(model, EngineOptions(precision = Precision.Exact(5))) })
        assertEquals(Status.INVALID, status { Engine.open(model, EngineOptions(memoryBytes = -1)) })
        engine().use { engine ->
            assertEquals(Status.INVALID, status { engine.chat(ChatOptions(context = 1 shl 30)) })
            val chat = engine.chat(ChatOptions(context = 64, slide = false))
            assertEquals(Status.CONTEXT_FULL, status { chat.send("word ".repeat(100)).collect() })
            assertEquals(Status.INVALID, status { chat.send("Hi", GenerateOptions(sampling = Sampling(topP = 0f))).collect() })
            repeat(3) { chat.close() }
            assertEquals(Status.CLOSED, status { chat.send("Hi").collect() })
            assertEquals(Status.CLOSED, status { chat.reset() })
            // One answer at a time. More is to come than waits for the collector, so this one is still generated.
            engine.chat().use { busy ->
                val long = greedy.copy(maxTokens = 60)
                var seen = 0
                busy.send("Tell me a story.", long).filterIsInstance<Event.Token>().collect {
                    if (seen++ == 0) {
                        assertEquals(Status.BUSY, status { busy.messagesJson() })
                        assertEquals(Status.BUSY, status { busy.send("And?").collect() })
                    }
                }
                assertEquals(60, seen)
            }
        }
    }

    @Test
    fun plansAndStatisticsAreJson() = runBlocking<Unit> {
        val whole = Engine.planJson(model)
        val smallest = Regex("\"smallest_bytes\":(\\d+)").find(whole)!!.groupValues[1].toLong()
        val options = EngineOptions(memoryBytes = smallest + (8 shl 20), precision = Precision.Exact(4))
        Engine.open(model, options).use { engine ->
            assertTrue("\"streaming\":true" in engine.planJson(), engine.planJson())
            engine.chat().use { it.send("Hello", greedy).collect() }
            assertTrue(Regex("\"evictions\":[1-9]").containsMatchIn(engine.statsJson()), engine.statsJson())
            assertTrue("\"architecture\"" in engine.infoJson())
        }
    }

    /** What a chat has, a generation keeps until it ends: closing in the middle is safe at every point. */
    @Test
    fun closingRacesWithGenerating() = runBlocking<Unit> {
        val races = Integer.getInteger("dollop.races", 300)
        val (ended, cut) = AtomicInteger() to AtomicInteger()
        val random = Random(7)
        engine().use { engine ->
            repeat(races) {
                val chat = engine.chat(ChatOptions(context = 96))
                val spins = random.nextInt(1, 200_000)
                val answer = async(Dispatchers.Default) {
                    try {
                        val last = chat.send("Hi", greedy.copy(maxTokens = 2)).toList().last()
                        if ((last as? Event.Done)?.stop == Stop.CANCELLED) cut.incrementAndGet() else ended.incrementAndGet()
                    } catch (e: DollopException) {
                        assertEquals(Status.CLOSED, e.status)
                        cut.incrementAndGet()
                    } catch (e: CancellationException) {
                        cut.incrementAndGet()
                        throw e
                    }
                }
                launch(Dispatchers.Default) {
                    var sum = 0
                    for (i in 0 until spins) sum += i
                    if (sum == 1) println()
                    chat.close()
                }.join()
                answer.join()
            }
        }
        assertEquals(races, ended.get() + cut.get())
        assertTrue(cut.get() > 0, "no answer was cut short")
    }
}
