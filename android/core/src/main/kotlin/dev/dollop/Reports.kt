// What the library says of models, memory and work: the native side's JSON as data classes, which can be written as JSON again.
package dev.dollop

import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonNamingStrategy

/** The native side's names; what this version has no field for is passed over. */
@OptIn(ExperimentalSerializationApi::class)
internal val json: Json = Json {
    namingStrategy = JsonNamingStrategy.SnakeCase
    ignoreUnknownKeys = true
    explicitNulls = false
}

/** A model in numbers and names. */
@Serializable
public data class ModelInfo(
    val name: String,
    val architecture: String,
    val layers: Int,
    /** Experts of a routed layer; 0 for a dense model. */
    val experts: Int,
    /** Experts that a token uses. */
    val expertsUsed: Int,
    /** Hidden width of a routed expert; 0 for a dense model. */
    val expertWidth: Int,
    /** Longest context that the model was made for, in tokens. */
    val context: Long,
    /** Token ids are below this. */
    val vocab: Int,
    /** Weights in matrices. */
    val parameters: Long,
    /** Of those, what one token passes through. */
    val activeParameters: Long,
    /** Bytes of all weights at the level in use. */
    val bytes: Long,
    /** Bytes that a token reads. */
    val activeBytes: Long,
    /** How it runs, for people. */
    val mode: String,
    /** What it runs on, for people. */
    val backend: String,
    val threads: Int,
    val hasChatTemplate: Boolean,
    /** Why the CPU computes where a GPU would have been preferred. */
    val note: String? = null,
)

/** How a budget of memory is spent, in bytes. */
@Serializable
public data class Plan(
    /** What may be used; null for no limit. */
    val budget: Long? = null,
    /** Everything together. */
    val totalBytes: Long,
    /** The smallest budget that works. */
    val smallestBytes: Long,
    /** Whether experts are streamed; otherwise all are resident. */
    val streaming: Boolean,
    val gpu: Boolean,
    /** Whether experts are resident at fewer bits than are stored. */
    val lowered: Boolean,
    /** Tokens of context that are planned for. */
    val context: Long,
    /** Tokens of a prompt that pass through the layers together. */
    val chunk: Int,
    /** Program, tokenizer and tables. */
    val overheadBytes: Long,
    /** Weights that every token uses. */
    val denseBytes: Long,
    /** Keys and values of one session. */
    val kvBytes: Long,
    /** Activations and other scratch of one session. */
    val scratchBytes: Long,
    /** Experts: all of them, or the cache. */
    val expertBytes: Long,
    /** Memory that streamed experts pass through on their way to a GPU. */
    val stagingBytes: Long,
    /** What each stored level would mean, lowest first. */
    val levels: List<LevelFit>,
)

/** What experts at one level would mean. */
@Serializable
public data class LevelFit(
    val bits: Int,
    /** The part of them that the memory holds, 0 to 1. */
    val resident: Double,
    /** Bytes of all of them. */
    val expertBytes: Long,
    /** Bytes of experts that a token touches. */
    val touchedBytes: Long,
    /** Bytes that a token reads if all experts are equally likely; real routing reads less. */
    val readBytes: Long,
)

/** What an engine has done since it was opened. */
@Serializable
public data class Stats(
    /** Mean bits of the experts computed; null where all are resident. */
    val meanBits: Double? = null,
    /** The part of what was wanted that was in memory; null where all experts are resident. */
    val hitRate: Double? = null,
    /** Null where all experts are resident. */
    val stream: StreamStats? = null,
    /** Null where the CPU computes. */
    val gpu: GpuStats? = null,
)

/** What streaming did. A plane is one bit or two more for an expert. */
@Serializable
public data class StreamStats(
    /** Planes wanted, lowest first. */
    val planesWanted: List<Long>,
    /** Of those, in memory. */
    val planesHit: List<Long>,
    /** Bytes read because they were wanted. */
    val bytesWanted: Long,
    /** Bytes read ahead of need. */
    val bytesAhead: Long,
    /** Planes given up above the base. */
    val downgrades: Long,
    /** Experts given up. */
    val evictions: Long,
    /** Times that the cache was made smaller or larger. */
    val resizes: Long,
    /** Bytes that went back to the system by that. */
    val bytesGivenBack: Long,
    /** Nanoseconds that computing waited for reads. */
    val waitNs: Long,
    /** Nanoseconds spent computing experts. */
    val computeNs: Long,
    /** Reads that were repeated. */
    val retries: Long,
)

/** What a GPU did. */
@Serializable
public data class GpuStats(
    /** Bytes allocated on it now. */
    val heldBytes: Long,
    /** Kernels launched. */
    val dispatches: Long,
    /** Waits for a result. */
    val readbacks: Long,
)

/** A GPU. */
@Serializable
public data class Gpu(
    /** For [EngineOptions.gpuIndex]. */
    val index: Int,
    val name: String,
    /** Vulkan, Metal or Dx12. */
    val api: String,
    val driver: String,
    /** Whether the CPU does its work. */
    val software: Boolean,
    /** What it lacks to compute models, if anything. */
    val missing: String? = null,
    /** The largest buffer that a kernel can read, in bytes. */
    val maxBindingBytes: Long,
)
