// How a model is opened, a conversation made, an answer generated. What is null is the library's or the model's own.
package dev.dollop

/** What to compute on. */
public enum class Backend { CPU, AUTO, GPU }

/** How many bits experts have. */
public sealed interface Precision {
    /** The highest stored level if everything fits the budget, else adaptive. */
    public data object Default : Precision

    /** Every expert at [bits] bits (2, 3, 4, 6 or 8): answers do not depend on the budget. */
    public data class Exact(val bits: Int) : Precision

    /** As many bits as are worth their bytes: [quality] for an average expert, at least [floor]. */
    public data class Adaptive(val quality: Float = 4f, val floor: Int = 3) : Precision
}

/** How a model is opened. */
public data class EngineOptions(
    /** Bytes that the engine and one chat may take together; null for no limit. */
    val memoryBytes: Long? = null,
    val backend: Backend = Backend.CPU,
    /** Which GPU; null for the first that can be used. */
    val gpuIndex: Int? = null,
    val precision: Precision = Precision.Default,
    /** Threads that compute; null for one per core. */
    val threads: Int? = null,
    /** Tokens of context that the budget is planned for. */
    val context: Int? = null,
    /** Reads at a time; null for as many as prove best. */
    val lanes: Int? = null,
    /** Stream experts even where all of them fit [memoryBytes], so that the engine can give memory back later. */
    val alwaysStream: Boolean = false,
    /** Folder that a foreign model is converted into, once. */
    val cacheFolder: String? = null,
    /** Folder for a GPU's compiled kernels. */
    val pipelinesFolder: String? = null,
) {
    /** In the order that the native library reads them. */
    internal fun numbers(): IntArray {
        val (kind, level) = when (val p = precision) {
            Precision.Default -> 0 to 0
            is Precision.Exact -> 1 to p.bits
            is Precision.Adaptive -> 2 to p.floor
        }
        val always = if (alwaysStream) 1 else 0
        return intArrayOf(backend.ordinal, gpuIndex ?: -1, threads ?: 0, context ?: 0, 0, kind, level, lanes ?: 0, 0, always)
    }

    internal val quality: Float get() = (precision as? Precision.Adaptive)?.quality ?: 0f
    internal val memory: Long get() = memoryBytes ?: 0
}

/** How a conversation is made. */
public data class ChatOptions(
    /** System prompt; null for the template's own. */
    val system: String? = null,
    /** Tokens of context; null for what the budget was planned for. */
    val context: Int? = null,
    /** Forget the oldest turns when the context is full; otherwise that is [Status.CONTEXT_FULL]. */
    val slide: Boolean = true,
)

/** How an answer is generated. */
public data class GenerateOptions(
    /** Most tokens of the answer; 0 only reads the prompt. */
    val maxTokens: Int = 512,
    val sampling: Sampling = Sampling(),
    /** Texts that end the answer and are not part of it. */
    val stop: List<String> = emptyList(),
) {
    internal fun stops(): Array<String> = stop.toTypedArray()
}
