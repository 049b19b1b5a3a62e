// Gate 87: what a token costs on its way to Kotlin, beside the same generation that tells nobody. `-Ddollop.tokens=20000 -Ddollop.jvm=`
// is how benches/records/ffi.md measured it.
package dev.dollop

import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Test

class TokenCostTest : WithModel() {
    private val tokens = Integer.getInteger("dollop.tokens")

    /** Tokens of one generation: few, so that attention stays cheap. */
    private val piece = 250

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
                val times = ways.map { mutableListOf<Long>() }
                // In turns, so that what else the machine does meets all of them.
                repeat(tokens / piece + 4) { round ->
                    ways.forEachIndexed { i, way ->
                        val start = System.nanoTime()
                        way()
                        if (round >= 4) times[i] += (System.nanoTime() - start) / piece
                    }
                }
                val (alone, called, collected) = times.map { it.sorted()[it.size / 2] }
                val more = "${called - alone} ns more to a listener, ${collected - alone} ns more to a flow"
                println("a token: $alone ns alone, $more (medians of ${times[0].size} times $piece tokens)")
                assertEquals(2 * piece * (tokens / piece + 4), heard, "a character a token, twice")
                assertTrue(called - alone < 1_000_000 && collected - alone < 10_000_000, "$times")
                Native.sessionClose(session)
                kotlin.close()
            }
        }
    }
}
