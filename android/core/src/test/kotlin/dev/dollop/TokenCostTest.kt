// Gate 87: what a token costs on its way to Kotlin, beside the same generation that tells nobody. `-Ddollop.tokens=20000 -Ddollop.jvm=`
// is how benches/records/ffi.md measured it.
package dev.dollop

import java.lang.management.ManagementFactory
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Test

class TokenCostTest : WithModel() {
    /** Tokens of one generation: few, so that attention stays cheap. */
    private val piece = 250
    private val rounds = Integer.getInteger("dollop.tokens") / piece
    private val threads = ManagementFactory.getThreadMXBean()

    /** Nanoseconds that all threads of this process have computed: waiting for a busy machine is no part of it. */
    private fun processors(): Long = threads.allThreadIds.sumOf { threads.getThreadCpuTime(it).coerceAtLeast(0) }

    @Test
    fun aTokenReachesKotlinInMicroseconds() = runBlocking<Unit> {
        withFolder { folder ->
            Tiny.open(folder).use { engine ->
                val session = Native.sessionNew((engine as NativeEngine).handle.number, piece + 8)
                val kotlin = engine.session(piece + 8)
                val options = GenerateOptions(maxTokens = piece, sampling = Sampling.Greedy)
                val prompt = intArrayOf(1, 2, 3)
                var heard = 0
                val nobody = {
                    val done = Native.sessionGenerate(session, prompt, piece, options.sampling.json(), emptyArray(), null)
                    assertEquals(piece.toDouble(), done[3])
                }
                val listener = {
                    Native.sessionGenerate(session, prompt, piece, options.sampling.json(), emptyArray()) { kind, _, _, _, text ->
                        if (kind == 1L) heard += text.length
                        true
                    }
                    Unit
                }
                val flow = {
                    runBlocking { kotlin.generate(prompt, options).collect { if (it is Event.Token) heard += it.text.length } }
                }
                val ways = listOf(nobody, listener, flow)
                val used = ways.map { mutableListOf<Long>() }
                // In turns, so that what else the machine does meets all of them; the first rounds warm up.
                repeat(rounds + WARM) { round ->
                    ways.forEachIndexed { i, way ->
                        val before = processors()
                        way()
                        if (round >= WARM) used[i] += (processors() - before) / piece
                    }
                }
                val (alone, called, collected) = used.map { it.sorted()[rounds / 2] }
                val more = "${called - alone} ns more to a listener, ${collected - alone} ns more to a flow"
                println("a token: $alone ns of processors with nobody to hear, $more (medians of $rounds times $piece tokens)")
                assertEquals(2 * piece * (rounds + WARM), heard, "a character a token, twice")
                // A bound for what would be a mistake; how fast it is depends on what else the machine does.
                assertTrue(collected - alone < 1_000_000, "$used")
                Native.sessionClose(session)
                kotlin.close()
            }
        }
    }

    private companion object {
        const val WARM = 8
    }
}
