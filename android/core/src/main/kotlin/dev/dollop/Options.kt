// Options for opening a model, creating a chat and generating. Null selects the default of the library or the model.
package dev.dollop

import kotlinx.serialization.json.add
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.encodeToJsonElement
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonArray

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
    /** The GPU's [Device.index]; null for the first usable one. */
    val gpuIndex: Int? = null,
    /** The precision of experts. */
    val precision: Precision = Precision.Default,
    /** Threads that compute; null for one per core. */
    val threads: Int? = null,
    /** Positions of the KV cache that the budget must hold; null for the model's context, at most 4096. */
    val context: Int? = null,
    /**
     * Tokens per prefill chunk; null for 512 or, if experts are streamed, for what the budget allows, at most 2048.
     */
    val chunk: Int? = null,
    /** Experts per token, if fewer than the model's; null for the model's. Changes results. */
    val expertsUsed: Int? = null,
    /** Experts to prefetch on a guess of the next layer's choice; 0 for none. Does not change results. */
    val lookahead: Int = 0,
    /**
     * Skips an expert that is not resident if its share of the token's gate weights is below this; 0 for never. Changes
     * results.
     */
    val skipCold: Float = 0f,
    /** Raises the rank of resident experts by this fraction of the range of their scores; 0 for none. Changes results. */
    val cachePrior: Float = 0f,
    /** Reads in flight; null for the number that measures best when the file is opened. */
    val lanes: Int? = null,
    /** Whether to stream experts even if all fit [memoryBytes], so that the engine can give memory back later. */
    val alwaysStream: Boolean = false,
    /** The folder for converted models; each foreign model is converted once. Null: only Dollop files can be opened. */
    val cacheFolder: String? = null,
    /** The folder for a GPU's compiled kernels: read on opening, written after new ones were compiled; null for none. */
    val pipelinesFolder: String? = null,
) {
    /** The options as JSON, with the names of `dollop_engine_options`. */
    internal fun json(): String = buildJsonObject {
        put("memory_bytes", memoryBytes)
        put("backend", backend.ordinal)
        put("gpu_index", gpuIndex)
        when (val p = precision) {
            Precision.Default -> put("precision", 0)
            is Precision.Exact -> {
                put("precision", 1)
                put("level", p.bits)
            }
            is Precision.Adaptive -> {
                put("precision", 2)
                put("level", p.floor)
                put("quality", p.quality)
            }
        }
        put("threads", threads)
        put("context", context)
        put("chunk", chunk)
        put("experts_used", expertsUsed)
        put("lookahead", lookahead)
        put("skip_cold", skipCold)
        put("cache_prior", cachePrior)
        put("lanes", lanes)
        put("always_stream", alwaysStream)
        put("cache_folder", cacheFolder)
        put("pipelines_folder", pipelinesFolder)
    }.toString()
}

/** What happens if the conversation no longer fits the context. */
public enum class Overflow {
    /** A prompt that does not fit fails with [Status.CONTEXT_FULL]. An answer ends when the context is full. */
    ERROR,

    /** The oldest turns are dropped; the system prompt stays. */
    SLIDE,
}

/** Options for creating a chat. */
public data class ChatOptions(
    /** The system prompt; null for the template's default. */
    val system: String? = null,
    /** Positions of the KV cache; null for the number that the budget was planned for. */
    val context: Int? = null,
    /** Tokens per prefill chunk; null for the number that the budget was planned for. */
    val chunk: Int? = null,
    /** What happens if the conversation no longer fits the context. */
    val overflow: Overflow = Overflow.SLIDE,
)

/**
 * A form that the answer must have. It applies to the answer, not to the reasoning before it. If it cannot be compiled, the
 * generation fails with [Status.INVALID].
 */
public sealed interface Constraint {
    /** The schema, expression or grammar. */
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
    /** Whether to continue after an end-of-turn token. */
    val ignoreEos: Boolean = false,
    /**
     * The target speed in tokens per second, if experts are streamed with adaptive precision; null for none. The
     * precision is lowered or raised to reach it, so results depend on the machine's speed.
     */
    val targetTokensPerSecond: Double? = null,
) {
    /** The options as JSON, with the names of `dollop_generate_options`. */
    internal fun json(): String = buildJsonObject {
        put("max_tokens", maxTokens)
        put("sampling", json.encodeToJsonElement(sampling))
        putJsonArray("stop") { stop.forEach { add(it) } }
        when (constraint) {
            null -> {}
            is Constraint.JsonSchema -> put("json_schema", constraint.text)
            is Constraint.Regex -> put("regex", constraint.text)
            is Constraint.Grammar -> put("grammar", constraint.text)
        }
        put("ignore_eos", ignoreEos)
        put("target_tps", targetTokensPerSecond)
    }.toString()
}
