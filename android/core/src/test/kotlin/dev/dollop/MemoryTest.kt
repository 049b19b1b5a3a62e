// Gate 85: memory in Kotlin: plans, and budgets and trims that other threads set during a generation.
package dev.dollop

import kotlin.random.Random
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import org.junit.jupiter.api.Test

class MemoryTest : WithModel() {
    @Test
    fun plansAndStatisticsAgreeWithTheEngine() = runBlocking<Unit> {
        val whole = Engine.plan(model)
        assertNull(whole.budget)
        assertTrue(!whole.streaming && whole.smallestBytes in 1 until whole.totalBytes)
        val levels = whole.levels
        assertEquals(levels.map { it.bits }.sorted(), levels.map { it.bits })
        assertTrue(levels.all { it.resident == 1.0 && it.touchedBytes in 1 until it.expertBytes })
        assertEquals(whole, Json.decodeFromString<Plan>(Json.encodeToString(whole)))
        streaming().use { engine ->
            val plan = engine.plan()
            assertTrue(plan.streaming && plan.totalBytes <= plan.budget!!, "$plan")
            assertTrue(plan.levels.first { it.bits == 4 }.resident in 0.01..0.99)
            engine.chat().use { it.send("Hello", greedy).toList() }
            val stats = engine.stats()
            val stream = assertNotNull(stats.stream)
            assertTrue(stream.evictions > 0 && stream.bytesWanted > 0, "$stream")
            assertEquals(4.0, stats.meanBits)
            assertTrue(stats.hitRate!! in 0.01..0.99)
            assertNull(stats.gpu)
            val info = engine.info()
            assertTrue(info.experts > info.expertsUsed && info.expertsUsed > 0 && info.hasChatTemplate, "$info")
            assertEquals(2, info.threads)
            assertTrue(info.activeBytes in 1 until info.bytes)
        }
        // Empty if the library is built without GPU kernels, as for these tests.
        val devices = Engine.devices()
        assertEquals(devices.indices.toList(), devices.map { it.index })
    }

    @Test
    fun resizesDuringAGenerationDoNotChangeTheText() = runBlocking<Unit> {
        streaming(more = 24L shl 20).use { engine ->
            val options = greedy.copy(maxTokens = 64)
            val quiet = engine.session().use { text(it.complete("The history of the sea begins", options).toList()) }
            val (budget, cache) = engine.plan().let { it.budget!! to it.expertBytes }
            val random = Random(11)
            var given = 0L
            var turns = 0
            val restless = engine.session().use { session ->
                val resizing = launch(Dispatchers.Default) {
                    while (true) {
                        given += when (random.nextInt(2)) {
                            0 -> engine.trim(TrimLevel.entries[random.nextInt(4)])
                            else -> engine.setMemory(budget - random.nextLong(cache / 2))
                        }
                        turns++
                        engine.plan()
                        engine.stats()
                        delay(1)
                    }
                }
                val answer = session.complete("The history of the sea begins", options).toList()
                resizing.cancel()
                resizing.join()
                text(answer)
            }
            assertEquals(quiet, restless)
            val stream = engine.stats().stream!!
            assertTrue(turns > 3 && given > 0 && stream.resizes > 3, "$turns turns, $given bytes, $stream")
            // The last resize may be cancelled before it returns its bytes.
            assertTrue(given <= stream.bytesGivenBack, "$given bytes, $stream")
        }
    }

    @Test
    fun trimLevelsSetTheSizeOfTheCache() = runBlocking<Unit> {
        streaming(more = 24L shl 20).use { engine ->
            val budget = engine.plan().budget!!
            engine.session().use { it.complete("Once upon a time", greedy).toList() }
            val caches = TrimLevel.entries.map { level ->
                engine.trim(level)
                engine.plan().expertBytes
            }
            assertTrue(caches.zipWithNext().all { (more, less) -> more > less }, "$caches")
            assertEquals(0, engine.trim(TrimLevel.COMPLETE), "the same level twice")
            engine.trim(TrimLevel.NORMAL)
            assertEquals(caches[0], engine.plan().expertBytes)
            val less = budget - caches[0] / 2
            assertTrue(engine.setMemory(less) > 0)
            assertEquals(less, engine.plan().budget)
            assertEquals(Status.BUDGET, status { engine.setMemory(1) })
            assertEquals(Status.INVALID, status { engine.setMemory(-1) })
            assertEquals(less, engine.plan().budget, "a budget that is refused changes nothing")
        }
    }
}
