// Options for opening a model, creating a chat and generating. Null selects the default of the library or the model.
package dev.dollop

/** Selects a processor. */
public enum class Backend {
    /** The CPU. */
    CPU,

    /** A hardware GPU if there is one, else the CPU. */
    AUTO,

    /** The GPU of [EngineOptions.gpuIndex]; opening fails if there is none. */
    GPU
}

/** The precision of experts. */
public sealed interface Precision {
    /** The highest stored level if everything fits the budget, else adaptive. */
    public data object Default : Precision

    /**
     * The same number of bits for every expert. Answers do not depend on the budget.
     *
     * @property bits 2, 3, 4, 6 or 8
     */
    public data class Exact(val bits: Int) : Precision

    /**
     * As many bits as are worth their bytes.
     *
     * @property quality the bits of an expert of average gate weight that has to be read
     * @property floor the fewest bits of any expert
     */
    public data class Adaptive(val quality: Float = 4f, val floor: Int = 3) : Precision
}

/** Options for opening a model. */
public data class EngineOptions(
    /** The memory budget in bytes, for the engine and one chat together; null for no limit. */
    val memoryBytes: Long? = null,
    /** The processor. */
    val backend: Backend = Backend.CPU,
    /** The GPU's [Gpu.index]; null for the first usable one. */
    val gpuIndex: Int? = null,
    /** The precision of experts. */
    val precision: Precision = Precision.Default,
    /** Threads that compute; null for one per core. */
    val threads: Int? = null,
    /** Positions of the KV cache that the budget must hold; null for the model's context, at most 4096. */
    val context: Int? = null,
    /** Reads in flight; null for the number that measures best when the file is opened. */
    val lanes: Int? = null,
    /** Whether to stream experts even if all fit [memoryBytes], so that the engine can give memory back later. */
    val alwaysStream: Boolean = false,
    /** The folder for converted models; each foreign model is converted once. Null: only Dollop files can be opened. */
    val cacheFolder: String? = null,
    /** The folder for a GPU's compiled kernels: read on opening, written after new ones were compiled; null for none. */
    val pipelinesFolder: String? = null,
) {
    /** The options as numbers, in the order that the native library reads them. */
    internal fun numbers(): IntArray {
        val (kind, level) = when (val p = precision) {
            Precision.Default -> 0 to 0
            is Precision.Exact -> 1 to p.bits
            is Precision.Adaptive -> 2 to p.floor
        }
        val always = if (alwaysStream) 1 else 0
        return intArrayOf(backend.ordinal, gpuIndex ?: -1, threads ?: 0, context ?: 0, 0, kind, level, lanes ?: 0, 0, always)
    }

    /** The quality of adaptive precision; 0 if the precision is another. */
    internal val quality: Float get() = (precision as? Precision.Adaptive)?.quality ?: 0f

    /** The memory budget in bytes; 0 for no limit. */
    internal val memory: Long get() = memoryBytes ?: 0
}

/** Options for creating a chat. */
public data class ChatOptions(
    /** The system prompt; null for the template's default. */
    val system: String? = null,
    /** Positions of the KV cache; null for the number that the budget was planned for. */
    val context: Int? = null,
    /**
     * Whether to drop the oldest turns when the context is full; the system prompt stays. If not, a prompt that does not
     * fit fails with [Status.CONTEXT_FULL], and an answer ends when the context is full.
     */
    val slide: Boolean = true,
)

/**
 * A form that the answer must have. It applies to the answer, not to the reasoning before it.
 *
 * @property text the schema, expression or grammar; if it cannot be compiled, the generation fails with [Status.INVALID]
 */
public sealed interface Constraint {
    public val text: String

    /** The answer is JSON that is valid under a JSON Schema. */
    public data class JsonSchema(override val text: String) : Constraint

    /** The whole answer matches a regular expression of the Rust crate `regex`, without lookaround. */
    public data class Regex(override val text: String) : Constraint

    /** The answer is derived by the rule `start` of a grammar in llguidance's variant of Lark. */
    public data class Grammar(override val text: String) : Constraint
}

/** Options for generating an answer. */
public data class GenerateOptions(
    /** The most tokens to generate; 0 only processes the prompt. */
    val maxTokens: Int = 512,
    /** How the next token is chosen. */
    val sampling: Sampling = Sampling(),
    /** Stop strings: texts that end the answer. They are not part of it. */
    val stop: List<String> = emptyList(),
    /** The form that the answer must have; null for none. */
    val constraint: Constraint? = null,
) {
    /** The kind of the constraint as the native library takes it. */
    internal val constraintKind: Int get() = when (constraint) {
        null -> 0
        is Constraint.JsonSchema -> 1
        is Constraint.Regex -> 2
        is Constraint.Grammar -> 3
    }

    /** The stop strings as the native library takes them. */
    internal fun stops(): Array<String> = stop.toTypedArray()
}
