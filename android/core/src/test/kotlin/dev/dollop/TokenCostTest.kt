// Gate 87: what a token costs on its way to Kotlin, beside the same generation that tells nobody. `-Ddollop.tokens=20000 -Ddollop.jvm=`
// is how benches/records/ffi.md measured it.
package dev.dollop

import com.sun.management.OperatingSystemMXBean
import java.lang.management.ManagementFactory
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Test

class TokenCostTest : WithModel() {
    /** Tokens of one generation: few, so that attention stays cheap. */
    private val piece = 250
    private val rounds = Integer.getInteger("dollop.tokens") / piece
    private val system = ManagementFactory.getOperatingSystemMXBean() as OperatingSystemMXBean

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
                val (cpu, fastest) = LongArray(3) to LongArray(3) { Long.MAX_VALUE }
                // In turns, so that what else the machine does meets all of them; the first rounds warm up.
                repeat(rounds + WARM) { round ->
                    ways.forEachIndexed { i, way ->
                        val (start, used) = System.nanoTime() to system.processCpuTime
                        way()
                        if (round >= WARM) {
                            cpu[i] += system.processCpuTime - used
                            fastest[i] = minOf(fastest[i], System.nanoTime() - start)
                        }
                    }
                }
                val names = listOf("with nobody to hear", "to a listener", "to a flow")
                names.forEachIndexed { i, name ->
                    println("a token $name: ${cpu[i] / (rounds * piece)} ns of processors, ${fastest[i] / piece} ns at best")
                }
                assertEquals(2 * piece * (rounds + WARM), heard, "a character a token, twice")
                // A bound for what would be a mistake; how fast it is depends on what else the machine does.
                assertTrue(fastest.max() - fastest[0] < piece * 5_000_000L, fastest.toList().toString())
                Native.sessionClose(session)
                kotlin.close()
            }
        }
    }

    private companion object {
        const val WARM = 8
    }
}
