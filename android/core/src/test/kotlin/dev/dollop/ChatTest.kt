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
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.yield
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import org.junit.jupiter.api.Test

class ChatTest : WithModel() {
    @Test
    fun answersAreStreamed() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat(ChatOptions(system = "You are brief.")).use { chat ->
                val events = chat.send("What is the capital of France?", greedy).toList()
                assertTrue("Paris" in text(events), text(events))
                assertIs<Event.Prefill>(events.first())
                val done = assertIs<Event.Done>(events.last()).outcome
                assertEquals(events.count { it is Event.Token }, done.generatedTokens)
                assertTrue(done.promptTokens > 10 && done.decodeSeconds > 0)
                val (system, asked, answered) = chat.messages()
                assertEquals(Message("system", "You are brief."), system)
                assertEquals(Message("user", "What is the capital of France?"), asked)
                assertEquals(Message("assistant", text(events)), answered)
                assertEquals(text(events), text(chat.regenerate(greedy).toList()))
                // The same message gives the same answer, and a slow collector gets the same events.
                chat.reset()
                val slow = chat.send("What is the capital of France?", greedy).onEach { repeat(50) { yield() } }.toList()
                assertEquals(text(events), text(slow))
                chat.setTime(1764374400)
            }
        }
    }

    @Test
    fun answersObeyTheirConstraint() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat().use { chat ->
                val ask: suspend (Constraint) -> String = { form ->
                    chat.reset()
                    text(chat.send("Name a color.", greedy.copy(constraint = form)).toList())
                }
                val schema = """{"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
                    "additionalProperties": false}"""
                val color = Json.parseToJsonElement(ask(Constraint.JsonSchema(schema))).jsonObject["color"]
                assertTrue(color?.jsonPrimitive?.content in setOf("red", "blue"), "$color")
                assertTrue(Regex("#[0-9a-f]{6}").matches(ask(Constraint.Regex("#[0-9a-f]{6}"))))
                assertEquals("It is blue", ask(Constraint.Grammar("start: \"It is \" color\ncolor: \"blue\"\n")))
                for (form in listOf(Constraint.JsonSchema("{\"type\": "), Constraint.Regex("a(b"), Constraint.Grammar("no"))) {
                    assertEquals(Status.INVALID, assertFailsWith<DollopException> { ask(form) }.status)
                }
                assertTrue(ask(Constraint.Regex("yes|no")) in setOf("yes", "no"))
            }
        }
    }

    @Test
    fun aCancelledCollectorStopsTheAnswerAndFreesTheChat() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat().use { chat ->
                val long = GenerateOptions(maxTokens = 400, sampling = Sampling.Greedy)
                val some = chat.send("Tell me a story.", long).filterIsInstance<Event.Token>().take(3).toList()
                assertEquals(3, some.size)
                // Not BUSY: the native call has returned.
                assertEquals("Tell me a story.", chat.messages().first { it.role == "user" }.content)
                val job = launch(Dispatchers.Default) { chat.send("And another.", long).collect {} }
                while (runCatching { chat.messages() }.isSuccess && job.isActive) yield()
                job.cancel()
                job.join()
                assertEquals(3, chat.send("Hello", greedy.copy(maxTokens = 3)).toList().count { it is Event.Token })
                // After cancel(), the flow completes with Done.
                val done = chat.send("A poem.", long).onEach { if (it is Event.Token) chat.cancel() }.toList().last()
                assertEquals(StopReason.CANCELLED, assertIs<Event.Done>(done).outcome.stop)
            }
        }
    }

    @Test
    fun failuresHaveAStatusAndAMessage() = runBlocking<Unit> {
        assertEquals(Status.IO, status { Engine.open("no-such-file") })
        assertEquals(Status.BUDGET, status { Engine.plan(model, EngineOptions(memoryBytes = 1)) })
        assertEquals(Status.INVALID, status { Engine.open(model, EngineOptions(precision = Precision.Exact(5))) })
        assertEquals(Status.INVALID, status { Engine.open(model, EngineOptions(memoryBytes = -1)) })
        engine().use { engine ->
            assertEquals(Status.INVALID, status { engine.chat(ChatOptions(context = 1 shl 30)) })
            val chat = engine.chat(ChatOptions(context = 64, overflow = Overflow.ERROR))
            assertEquals(Status.CONTEXT_FULL, status { chat.send("word ".repeat(100)).collect() })
            assertEquals(Status.INVALID, status { chat.send("Hi", GenerateOptions(sampling = Sampling(topP = 0f))).collect() })
            repeat(3) { chat.close() }
            assertEquals(Status.CLOSED, status { chat.send("Hi").collect() })
            assertEquals(Status.CLOSED, status { chat.reset() })
            // One answer at a time. It has more events than the buffer, so it is still being generated.
            engine.chat().use { busy ->
                val long = greedy.copy(maxTokens = 60)
                var seen = 0
                busy.send("Tell me a story.", long).filterIsInstance<Event.Token>().collect {
                    if (seen++ == 0) {
                        assertEquals(Status.BUSY, status { busy.messages() })
                        assertEquals(Status.BUSY, status { busy.send("And?").collect() })
                    }
                }
                assertEquals(60, seen)
            }
        }
    }

    @Test
    fun messagesAndVariablesReachTheTemplate() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat().use { chat ->
                val before = listOf(Message("user", "My dog is called Rex. \uD83D\uDC36"), Message("assistant", "Nice."))
                chat.setMessages(before)
                assertEquals(before, chat.messages())
                chat.setVariables(buildJsonObject { put("enable_thinking", false) })
                val done = assertIs<Event.Done>(chat.send("Say hello.", greedy.copy(maxTokens = 2)).toList().last()).outcome
                assertTrue(done.promptTokens > 20, "the messages are read")
                val info = chat.info()
                assertEquals(512, info.context)
                assertEquals(done.promptTokens + 1L, info.tokens)
                assertTrue(info.processedTokens >= info.tokens)
            }
        }
    }

    /** A slow collector pauses the generation: 16 events wait for it, not a whole answer. */
    @Test
    fun aSlowCollectorPausesTheGeneration() = runBlocking<Unit> {
        class Enough : Exception()
        engine().use { engine ->
            engine.session().use { session ->
                val prompt = engine.tokenize("Once upon a time")
                assertFailsWith<Enough> {
                    session.generate(prompt, greedy.copy(maxTokens = 400)).filterIsInstance<Event.Token>().collect {
                        // A token takes a few milliseconds: this is enough time for a hundred, on a busy machine too.
                        delay(5000)
                        throw Enough()
                    }
                }
                // 16 tokens wait, one was collected, one is being sent, and the last is not in the cache yet.
                val generated = session.info().tokens - prompt.size
                assertTrue(generated in 2..19, "$generated tokens were generated while one was collected")
            }
        }
    }

    /** A generation keeps what it needs of a closed chat until it ends, so closing is safe at every point. */
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
                        if ((last as? Event.Done)?.outcome?.stop == StopReason.CANCELLED) cut.incrementAndGet() else ended.incrementAndGet()
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
