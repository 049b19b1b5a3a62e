// Gate 84: sessions in Kotlin: completion of text and tokens, forks, saved files, and files that do not fit.
package dev.dollop

import java.nio.file.Path
import java.util.concurrent.atomic.AtomicInteger
import kotlin.io.path.fileSize
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.random.Random
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Test

class SessionTest : WithModel() {
    private val exact = Precision.Exact(4)
    private val start = "The three largest cities of France are"

    @Test
    fun detokenizeInvertsTokenize() = runBlocking<Unit> {
        engine().use { engine ->
            val text = "Grüße aus 東京 \uD83D\uDC2C, said the dolphin."
            val ids = engine.tokenize(text)
            assertTrue(ids.size > 8 && ids.all { it in 0 until engine.info().vocab })
            assertEquals(text, engine.detokenize(ids))
            assertEquals(0, engine.tokenize("").size)
            // A lone surrogate is replaced.
            assertTrue('a' in engine.detokenize(engine.tokenize("a\uD83D")))
            assertEquals(Status.INVALID, status { engine.detokenize(intArrayOf(engine.info().vocab)) })
            assertEquals(Status.INVALID, status { engine.detokenize(intArrayOf(-1)) })
        }
    }

    @Test
    fun promptsAreTextOrTokens() = runBlocking<Unit> {
        engine(exact).use { engine ->
            engine.session(context = 128).use { session ->
                val ids = engine.tokenize(start, addSpecial = true)
                val events = session.complete(start, greedy).toList()
                val done = assertIs<Event.Done>(events.last()).outcome
                assertEquals(ids.size, done.promptTokens)
                assertContentEquals(ids, session.tokens().copyOf(ids.size))
                val generated = events.filterIsInstance<Event.Token>().map { it.id }
                // The last token is in the cache only if the model ended its turn after it.
                val kept = if (done.stop == StopReason.MAX_TOKENS) generated.dropLast(1) else generated
                assertContentEquals(kept.toIntArray(), session.tokens().drop(ids.size).toIntArray())
                assertEquals(engine.detokenize(generated.toIntArray()), text(events))
                // The same prompt as tokens, with all but the last one in the cache. Then again after a rewind.
                val again = session.generate(ids, greedy).toList()
                assertEquals(text(events), text(again))
                assertEquals(ids.size - 1, assertIs<Event.Done>(again.last()).outcome.reusedTokens)
                session.rewind(2)
                assertEquals(2, session.info().tokens)
                val third = session.generate(ids, greedy).toList()
                assertEquals(text(events), text(third))
                assertEquals(2, assertIs<Event.Done>(third.last()).outcome.reusedTokens)
                assertEquals(Status.INVALID, status { session.generate(IntArray(0)).toList() })
                assertEquals(Status.INVALID, status { session.rewind(-1) })
                assertEquals(Status.CONTEXT_FULL, status { session.generate(IntArray(129) { 5 }).toList() })
                // Options have an effect: a stop string, a seed, a bias.
                val word = text(events).trim().split(' ')[1]
                val short = session.complete(start, greedy.copy(stop = listOf(word))).toList()
                assertEquals(StopReason.STOP_TEXT, assertIs<Event.Done>(short.last()).outcome.stop)
                assertTrue(word !in text(short) && text(events).startsWith(text(short)))
                val warm = Sampling(temperature = 1.5f, topK = 0, topP = 1f, minP = 0f, seed = 1, mirostat = Mirostat.OFF)
                val (one, same, other) = listOf(warm, warm, warm.copy(seed = 2)).map {
                    text(session.complete(start, greedy.copy(sampling = it)).toList())
                }
                assertEquals(one, same)
                assertNotEquals(one, other)
                val never = generated.first()
                val biased = Sampling.Greedy.copy(logitBias = listOf(LogitBias(never, Float.NEGATIVE_INFINITY)))
                val avoided = session.complete(start, greedy.copy(sampling = biased)).toList()
                assertTrue(avoided.none { it is Event.Token && it.id == never })
            }
        }
    }

    @Test
    fun aForkGeneratesTheSameTokens() = runBlocking<Unit> {
        engine(exact).use { engine ->
            engine.session(context = 128).use { session ->
                session.complete(start, greedy.copy(maxTokens = 4)).toList()
                session.fork().use { fork ->
                    assertContentEquals(session.tokens(), fork.tokens())
                    assertEquals(0, fork.info().processedTokens)
                    val prompt = session.tokens()
                    val here = session.generate(prompt, greedy).toList()
                    val there = fork.generate(prompt, greedy).toList()
                    assertEquals(text(here), text(there))
                    assertEquals(prompt.size - 1, assertIs<Event.Done>(there.last()).outcome.reusedTokens)
                }
            }
        }
    }

    /** A saved chat continues in another engine, as it would in a later process. */
    @Test
    fun aRestoredChatGeneratesTheSameText() = runBlocking<Unit> {
        withFolder { folder ->
            val file = folder.resolve("chat.session")
            val expected = engine(exact).use { engine ->
                engine.chat(ChatOptions(system = "You are brief.")).use { chat ->
                    chat.send("What is the capital of France?", greedy).toList()
                    val bytes = chat.save(file.toString())
                    assertEquals(file.fileSize(), bytes)
                    // The second save replaces the file.
                    assertEquals(bytes, chat.save(file.toString()))
                    chat.messages() to chat.send("And of Italy?", greedy).toList()
                }
            }
            val (messages, answer) = expected
            engine(exact).use { engine ->
                engine.loadChat(file.toString()).use { chat ->
                    assertEquals(messages, chat.messages())
                    assertEquals(0, chat.info().processedTokens)
                    val again = chat.send("And of Italy?", greedy).toList()
                    assertEquals(text(answer), text(again))
                    val (then, now) = assertIs<Event.Done>(answer.last()).outcome to assertIs<Event.Done>(again.last()).outcome
                    assertEquals(then.reusedTokens, now.reusedTokens)
                    assertTrue(now.reusedTokens > 20)
                }
                // A chat's file can be loaded as a session, but a session's file not as a chat.
                engine.loadSession(file.toString(), context = 256).use { session ->
                    assertEquals(256, session.info().context)
                    val alone = folder.resolve("alone.session").toString()
                    session.save(alone)
                    assertEquals(Status.MALFORMED, status { engine.loadChat(alone) })
                }
            }
        }
    }

    @Test
    fun invalidSessionFilesAreRejected() = runBlocking<Unit> {
        withFolder { folder ->
            val file = folder.resolve("some.session")
            engine(exact).use { engine ->
                engine.session(context = 64).use { it.complete(start, greedy).toList(); it.save(file.toString()) }
                suspend fun load(path: Path, context: Int? = null) = status { engine.loadSession(path.toString(), context) }
                assertEquals(Status.IO, load(folder.resolve("none")))
                assertEquals(Status.MALFORMED, load(folder))
                assertEquals(Status.CONTEXT_FULL, load(file, 16))
                assertEquals(Status.INVALID, load(file, -1))
                val whole = file.readBytes()
                val damaged = folder.resolve("damaged")
                for (at in listOf(0, 100, whole.size / 2, whole.size - 1)) {
                    damaged.writeBytes(whole.clone().also { it[at] = (it[at].toInt() xor 16).toByte() })
                    assertTrue(load(damaged) in setOf(Status.MALFORMED, Status.UNSUPPORTED), "byte $at")
                }
                damaged.writeBytes(whole.copyOf(whole.size - 7))
                assertEquals(Status.MALFORMED, load(damaged))
                damaged.writeBytes(ByteArray(0))
                assertEquals(Status.MALFORMED, load(damaged))
                // The parent is a file, not a folder.
                assertEquals(Status.IO, status { engine.session(64).use { it.save(file.resolve("inside").toString()) } })
            }
            // Another precision, another model.
            engine(Precision.Exact(3)).use { assertEquals(Status.UNSUPPORTED, status { it.loadSession(file.toString()) }) }
            Tiny.open(folder).use { assertEquals(Status.UNSUPPORTED, status { it.loadSession(file.toString()) }) }
        }
    }

    @Test
    fun closedHandlesFailWithClosed() = runBlocking<Unit> {
        val engine = engine()
        val (session, chat) = engine.session(64) to engine.chat(ChatOptions(context = 64))
        repeat(2) { engine.close() }
        val calls = listOf<suspend () -> Unit>(
            { engine.info() }, { engine.sampling() }, { engine.render(emptyList()) }, { engine.stats() }, { engine.plan() }, { engine.chat() }, { engine.session() },
            { engine.trim(TrimLevel.NORMAL) }, { engine.setMemory(1L shl 40) }, { engine.tokenize("a") },
            { engine.detokenize(intArrayOf(1)) }, { engine.loadChat("a") }, { engine.loadSession("a") },
        )
        for (call in calls) assertEquals(Status.CLOSED, status(call))
        // Sessions and chats outlive their engine.
        assertEquals(1, session.complete("Hi", greedy.copy(maxTokens = 1)).toList().count { it is Event.Token })
        session.fork().close()
        repeat(2) { session.close() }
        repeat(2) { chat.close() }
        val later = listOf<suspend () -> Unit>(
            { session.complete("a").toList() }, { session.generate(intArrayOf(1)).toList() }, { session.tokens() },
            { session.rewind(0) }, { session.info() }, { session.logits(intArrayOf(1)) }, { session.fork() }, { session.save("a") }, { session.cancel() },
            { chat.send("a").toList() }, { chat.regenerate().toList() }, { chat.messages() }, { chat.setMessages(emptyList()) },
            { chat.setTime(0) }, { chat.reset() }, { chat.info() }, { chat.save("a") }, { chat.cancel() },
        )
        for (call in later) assertEquals(Status.CLOSED, status(call))
    }

    /** Closing a session races with its other calls on other threads. */
    @Test
    fun closingRacesWithSavingAndForking() = runBlocking<Unit> {
        val (whole, refused) = AtomicInteger() to AtomicInteger()
        withFolder { folder ->
            engine().use { engine ->
                val random = Random(3)
                repeat(Integer.getInteger("dollop.races") / 10) { i ->
                    val session = engine.session(64)
                    session.generate(intArrayOf(1, 2, 3), greedy.copy(maxTokens = 0)).toList()
                    val calls = listOf<suspend () -> Unit>(
                        { session.save(folder.resolve("$i").toString()) },
                        { session.fork().close() },
                        { session.tokens() },
                    )
                    val jobs = calls.map { call ->
                        launch(Dispatchers.Default) {
                            try {
                                call()
                                whole.incrementAndGet()
                            } catch (e: DollopException) {
                                assertTrue(e.status == Status.CLOSED || e.status == Status.BUSY, "$e")
                                refused.incrementAndGet()
                            }
                        }
                    }
                    Thread.sleep(0, random.nextInt(900_000))
                    session.close()
                    jobs.forEach { it.join() }
                }
            }
        }
        assertTrue(whole.get() > 0, "nothing was whole")
    }
}
