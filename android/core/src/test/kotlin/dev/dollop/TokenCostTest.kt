// Gate 87: the cost of delivering a token to Kotlin, compared with the same generation without a listener. benches/records/ffi.md
// measured it with `-Ddollop.tokens=20000 -Ddollop.jvm=`.
package dev.dollop

import java.lang.management.ManagementFactory
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Test

class TokenCostTest : WithModel() {
    /** Tokens per generation: few, so that attention stays cheap. */
    private val piece = 250
    private val rounds = Integer.getInteger("dollop.tokens") / piece
    private val threads = ManagementFactory.getThreadMXBean()

    /** Nanoseconds of CPU time that all threads of this process have used. Waiting for a busy machine does not count. */
    private fun processors(): Long = threads.allThreadIds.sumOf { threads.getThreadCpuTime(it).coerceAtLeast(0) }

    @Test
    fun deliveringATokenCostsMicroseconds() = runBlocking<Unit> {
        withFolder { folder ->
            Tiny.open(folder).use { engine ->
                val session = Native.sessionNew((engine as NativeEngine).handle.number, piece + 8, 0)
                val kotlin = engine.session(piece + 8)
                val options = GenerateOptions(maxTokens = piece, sampling = Sampling.Greedy)
                val prompt = intArrayOf(1, 2, 3)
                var received = 0
                val silent = {
                    val done = Native.sessionGenerate(session, prompt, options.json(), null)
                    assertEquals(piece.toDouble(), done[3])
                }
                val listener = {
                    Native.sessionGenerate(session, prompt, options.json()) { kind, _, _, _, text ->
                        if (kind == 1L) received += text.length
                        true
                    }
                    Unit
                }
                val flow = {
                    runBlocking { kotlin.generate(prompt, options).collect { if (it is Event.Token) received += it.text.length } }
                }
                val ways = listOf(silent, listener, flow)
                val used = ways.map { mutableListOf<Long>() }
                // In turns, so that other load on the machine affects all ways equally. The first rounds warm up.
                repeat(rounds + WARM) { round ->
                    ways.forEachIndexed { i, way ->
                        val before = processors()
                        way()
                        if (round >= WARM) used[i] += (processors() - before) / piece
                    }
                }
                val (alone, called, collected) = used.map { it.sorted()[rounds / 2] }
                val more = "${called - alone} ns more to a listener, ${collected - alone} ns more to a flow"
                println("a token: $alone ns of CPU time without a listener, $more (medians of $rounds times $piece tokens)")
                assertEquals(2 * piece * (rounds + WARM), received, "one character per token, twice")
                // A loose bound, to catch mistakes: the time depends on other load on the machine.
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
