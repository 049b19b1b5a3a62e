// Gate 210: each option of dollop.h that Kotlin passes on has its effect, and the reports have the engine's numbers.
package dev.dollop

import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import org.junit.jupiter.api.Test

class OptionsTest : WithModel() {
    private val question = "What is the capital of France?"
    private val exact = EngineOptions(threads = 2, context = 512, precision = Precision.Exact(4))

    private suspend fun text(events: Flow<Event>): String = text(events.toList())

    /** Opens the model with streamed experts and the smallest budget that works plus 8 MiB, and [change]s to the options. */
    private suspend fun streaming(change: EngineOptions.() -> EngineOptions): Engine {
        val options = exact.change()
        val smallest = Engine.plan(model, options).smallestBytes
        return Engine.open(model, options.copy(memoryBytes = smallest + (8 shl 20), alwaysStream = true))
    }

    /** Returns the statistics after an answer of an engine with streamed experts. */
    private suspend fun stats(options: GenerateOptions = greedy, change: EngineOptions.() -> EngineOptions): Stats =
        streaming(change).use { engine ->
            engine.session().use { it.complete("The three largest cities of France are", options).toList() }
            engine.stats()
        }

    @Test
    fun anAnswerGoesOnAfterItsEndIfEndsAreIgnored() = runBlocking<Unit> {
        engine().use { engine ->
            engine.chat(ChatOptions(system = "You are brief.")).use { chat ->
                // The likeliest token is now always the one that ends a turn.
                val ends = Sampling.Greedy.copy(logitBias = listOf(LogitBias(engine.info().eos!!, 1000f)))
                val options = GenerateOptions(maxTokens = 4, sampling = ends)
                val reply = chat.reply(question, options)
                assertEquals(StopReason.END_OF_TURN, reply.outcome.stop)
                assertEquals(Message("assistant", reply.text), chat.messages().last())
                chat.reset()
                val longer = chat.reply(question, options.copy(ignoreEos = true))
                assertEquals(StopReason.MAX_TOKENS, longer.outcome.stop)
                assertEquals(4, longer.outcome.generatedTokens)
                assertTrue(longer.outcome.tokensPerSecond!! > 0)
            }
        }
    }

    @Test
    fun theChainAndTheBreakersOfDryDecide() = runBlocking<Unit> {
        engine().use { engine ->
            engine.session().use { session ->
                suspend fun first(sampling: Sampling, prompt: String) =
                    text(session.complete(prompt, greedy.copy(maxTokens = 4, sampling = sampling)))
                val start = "The capital of France is"
                // Without the penalties of the model's own chain.
                val greedily = first(Sampling.Greedy.copy(chain = "top_k;temperature"), start)
                val hot = Sampling(temperature = 50f, topK = 1, seed = 1)
                assertEquals(greedily, first(hot.copy(chain = "top_k;temperature"), start))
                assertNotEquals(greedily, first(hot.copy(chain = "temperature"), start), "top_k is not in the chain")
                for (chain in listOf("coffee", "top_k;top_k")) {
                    assertEquals(Status.INVALID, status { first(hot.copy(chain = chain), start) })
                }
                val list = "red green blue red green blue red green blue red green"
                // The list goes on with a word that has a large bias, which the penalty of a repetition exceeds.
                val biased = Sampling.Greedy.copy(logitBias = listOf(LogitBias(engine.tokenize(" blue").single(), 50f)))
                val repeated = first(biased, list)
                assertTrue(repeated.startsWith(" blue"), repeated)
                val dry = biased.copy(dryMultiplier = 100f, dryBase = 1.75f, dryAllowedLength = 1, dryLastN = 64)
                assertTrue(!first(dry.copy(dryBreakers = emptyList()), list).startsWith(" blue"), "DRY stops the repetition")
                assertTrue(first(dry.copy(dryBreakers = listOf(" green")), list).startsWith(" blue"), "a breaker ends the match")
            }
        }
    }

    @Test
    fun samplingIsWhatTheModelRecommends() = runBlocking<Unit> {
        engine().use { engine ->
            val own = engine.sampling()
            assertTrue(own.temperature!! >= 0 && own.topK!! >= 0 && own.dryBreakers!!.isNotEmpty(), "$own")
            assertTrue("temperature" in own.chain!!.split(';'), own.chain)
            engine.session().use { session ->
                val (implicit, explicit) = listOf(Sampling(seed = 3), own.copy(seed = 3)).map {
                    text(session.complete("Once upon a time", greedy.copy(sampling = it)))
                }
                assertEquals(implicit, explicit)
            }
            // A bias of minus infinity is null in JSON, which has no infinity.
            val never = Sampling(logitBias = listOf(LogitBias(7, Float.NEGATIVE_INFINITY), LogitBias(8, 1.5f)))
            val text = Json.encodeToString(never)
            assertTrue("null" in text, text)
            assertEquals(never, Json.decodeFromString(text))
        }
    }

    @Test
    fun numbersThatAreNotFiniteAreRejected() = runBlocking<Unit> {
        assertEquals(Status.INVALID, status { Engine.open(model, exact.copy(skipCold = Float.NaN)) })
        assertEquals(Status.INVALID, status { Engine.open(model, exact.copy(lookahead = -1)) })
        assertEquals(Status.INVALID, status { Engine.open(model, exact.copy(chunk = -1)) })
        engine().use { engine ->
            assertEquals(Status.INVALID, status { engine.session(chunk = -1) })
            engine.session().use { session ->
                val options = listOf(
                    greedy.copy(targetTokensPerSecond = -1.0), greedy.copy(targetTokensPerSecond = Double.NaN),
                    greedy.copy(sampling = Sampling(temperature = Float.NaN)), greedy.copy(maxTokens = -1),
                    greedy.copy(sampling = Sampling(logitBias = listOf(LogitBias(1, Float.POSITIVE_INFINITY)))),
                )
                for (bad in options) assertEquals(Status.INVALID, status { session.complete("a", bad).toList() }, "$bad")
            }
        }
    }

    @Test
    fun theChunkIsThatOfTheOptions() = runBlocking<Unit> {
        Engine.open(model, exact.copy(chunk = 64)).use { engine ->
            assertEquals(64, engine.plan().chunk)
            for (chunk in listOf(16, 32)) {
                engine.session(chunk = chunk).use { assertIs<Event.Done>(it.complete("word ".repeat(100), greedy).toList().last()) }
            }
            assertEquals(Status.INVALID, status { engine.chat(ChatOptions(chunk = -1)) })
        }
    }

    @Test
    fun streamingFollowsItsOptions() = runBlocking<Unit> {
        val plain = stats { this }
        val stream = plain.stream!!
        assertEquals(listOf(0L, 0L, 0L), listOf(plain.dropped, plain.redirected, stream.bytesAhead))
        assertTrue(stats { copy(lookahead = 8) }.stream!!.bytesAhead > 0)
        // Exact precision excludes options that change results.
        val adaptive = Precision.Adaptive()
        assertTrue(stats { copy(skipCold = 0.9f, precision = adaptive) }.dropped > 0)
        assertTrue(stats { copy(cachePrior = 0.9f, precision = adaptive) }.redirected > 0)
        val fewer = stats { copy(expertsUsed = 1, precision = adaptive) }.stream!!
        assertTrue(fewer.planesWanted[0] < stream.planesWanted[0], "$fewer")
    }

    /** The target is out of reach, so the precision sinks below that of an answer without a target. */
    @Test
    fun aTargetSpeedLowersThePrecision() = runBlocking<Unit> {
        val adaptive = Precision.Adaptive(quality = 8f, floor = 2)
        val free = stats(greedy.copy(maxTokens = 64, ignoreEos = true)) { copy(precision = adaptive) }
        val fast = stats(greedy.copy(maxTokens = 64, ignoreEos = true, targetTokensPerSecond = 1e5)) { copy(precision = adaptive) }
        assertTrue(fast.meanBits!! < free.meanBits!!, "${fast.meanBits} and ${free.meanBits} bits")
    }

    @Test
    fun logitsAreThoseOfTheNextToken() = runBlocking<Unit> {
        engine(Precision.Exact(4)).use { engine ->
            engine.session().use { session ->
                val ids = engine.tokenize("The capital of France is", addSpecial = true)
                val logits = session.logits(ids)
                assertEquals(engine.info().vocab, logits.size)
                val best = logits.indices.maxBy { logits[it] }
                assertTrue("Paris" in engine.detokenize(intArrayOf(best)))
                assertContentEquals(ids, session.tokens())
                session.fork().use { fork ->
                    assertContentEquals(session.logits(intArrayOf(best)), fork.logits(intArrayOf(best)))
                }
                session.rewind(ids.size)
                assertEquals(Status.INVALID, status { session.logits(intArrayOf()) })
                assertEquals(Status.INVALID, status { session.logits(intArrayOf(engine.info().vocab)) })
                assertContentEquals(ids, session.tokens(), "a failure changes nothing")
            }
        }
    }

    @Test
    fun messagesAreRenderedByTheTemplate() = runBlocking<Unit> {
        engine().use { engine ->
            val messages = listOf(Message("user", "Hello!"))
            val open = engine.render(messages)
            assertTrue("Hello!" in open && open.endsWith("assistant\n"), open)
            val closed = engine.render(messages, addGenerationPrompt = false)
            assertTrue(open.startsWith(closed) && closed.length < open.length, closed)
            val info = engine.info()
            for (id in listOf(info.bos!!, info.eos!!)) {
                assertTrue(id in 0 until info.vocab && engine.detokenize(intArrayOf(id), skipSpecial = false).isNotEmpty(), "$info")
            }
            assertTrue(Regex("\\d+\\.\\d+\\.\\d+.*").matches(Engine.libraryVersion), Engine.libraryVersion)
            assertIs<Event.Done>(engine.session().use { it.complete(open, greedy).toList() }.last())
        }
    }
}
