// Reports on models, memory and work: data classes for the native library's JSON. They can be serialized again.
package dev.dollop

import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonNamingStrategy

/** Reads the native library's JSON, whose names are in snake case. Keys without a property are ignored. */
@OptIn(ExperimentalSerializationApi::class)
internal val json: Json = Json {
    namingStrategy = JsonNamingStrategy.SnakeCase
    ignoreUnknownKeys = true
    explicitNulls = false
    // Written as in Kotlin, so that the native library rejects them with a message.
    allowSpecialFloatingPointValues = true
}

/** A model's names, dimensions and sizes. */
@Serializable
public data class ModelInfo(
    /** The model's name. */
    val name: String,
    /** The model's architecture, such as "qwen2moe". */
    val architecture: String,
    /** Transformer blocks. */
    val layers: Int,
    /** Experts per routed layer; 0 for a dense model. */
    val experts: Int,
    /** Experts per token. */
    val expertsUsed: Int,
    /** Hidden width of a routed expert; 0 for a dense model. */
    val expertWidth: Int,
    /** The longest context that the model was trained for, in tokens. */
    val context: Long,
    /** Tokens in the vocabulary. Token ids are below this. */
    val vocab: Int,
    /** The token at the beginning of a text; null if there is none. */
    val bos: Int? = null,
    /** The token at the end of a text; null if there is none. */
    val eos: Int? = null,
    /** Weights in all matrices. */
    val parameters: Long,
    /** Weights in the matrices that one token uses. */
    val activeParameters: Long,
    /** Bytes of all weights at the level in use. */
    val bytes: Long,
    /** Bytes of the weights that one token reads, at the level in use. */
    val activeBytes: Long,
    /** How the model runs, for display: residency, precision, level. */
    val mode: String,
    /** The processor, for display. */
    val backend: String,
    /** Threads that compute. */
    val threads: Int,
    /** Whether the model has a chat template. */
    val hasChatTemplate: Boolean,
    /** Why the CPU computes although a GPU was preferred; null if it was not. */
    val note: String? = null,
)

/** How a memory budget is spent, in bytes. */
@Serializable
public data class Plan(
    /** The memory budget; null for no limit. */
    val budget: Long? = null,
    /** The sum of all parts. */
    val totalBytes: Long,
    /** The smallest budget that works. */
    val smallestBytes: Long,
    /** Whether experts are streamed. Otherwise all are resident. */
    val streaming: Boolean,
    /** Whether a GPU computes. */
    val gpu: Boolean,
    /** Whether experts are resident at fewer bits than are stored. */
    val lowered: Boolean,
    /** Positions of the planned KV cache. */
    val context: Long,
    /** Tokens per prefill chunk. */
    val chunk: Int,
    /** Program, tokenizer and tables. */
    val overheadBytes: Long,
    /** Weights that every token uses. */
    val denseBytes: Long,
    /** KV cache of one session. */
    val kvBytes: Long,
    /** Activations and other scratch of one session. */
    val scratchBytes: Long,
    /** Memory for experts: the cache, or all of them. */
    val expertBytes: Long,
    /** Host memory through which streamed experts pass on their way to a GPU. */
    val stagingBytes: Long,
    /** What each stored level would mean under this plan, lowest first. */
    val levels: List<PlanLevel>,
)

/** What one level would mean under a plan. */
@Serializable
public data class PlanLevel(
    /** Bits of the level. */
    val bits: Int,
    /** The share of the experts' bytes that the memory holds, from 0 to 1. */
    val resident: Double,
    /** Bytes of all experts at this level. */
    val expertBytes: Long,
    /** Bytes of the experts that one token uses. */
    val touchedBytes: Long,
    /** Bytes that one token reads if all experts are equally likely. Real routing reads less. */
    val readBytes: Long,
)

/** Counters of an engine since it was opened. */
@Serializable
public data class Stats(
    /** Mean bits of the computed experts, weighted by gate; null if all experts are resident. */
    val meanBits: Double? = null,
    /** The share of the needed planes that were resident, from 0 to 1; null if all experts are resident. */
    val hitRate: Double? = null,
    /** Counters of streaming; null if all experts are resident. */
    val stream: StreamStats? = null,
    /** Counters of the GPU; null if only the CPU has computed. */
    val gpu: GpuStats? = null,
    /** Choices of the router that were dropped. */
    val dropped: Long = 0,
    /** Choices of the router that were redirected to another expert. */
    val redirected: Long = 0,
)

/** Counters of streaming. A plane adds one or two bits to an expert. */
@Serializable
public data class StreamStats(
    /** Planes that experts needed, lowest plane first. */
    val planesWanted: List<Long>,
    /** Needed planes that were resident, lowest plane first. */
    val planesHit: List<Long>,
    /** Bytes read because a layer needed them. */
    val bytesWanted: Long,
    /** Bytes prefetched. */
    val bytesAhead: Long,
    /** Bytes read for embedding rows that are not held in memory. */
    val bytesEmbedding: Long,
    /** Planes above the base that were evicted. */
    val downgrades: Long,
    /** Base planes that were evicted. */
    val evictions: Long,
    /** How often the cache was resized. */
    val resizes: Long,
    /** Bytes that resizes gave back to the system. */
    val bytesGivenBack: Long,
    /** Nanoseconds that computation waited for reads. */
    val waitNs: Long,
    /** Nanoseconds spent computing experts. */
    val computeNs: Long,
    /** Reads that were repeated. */
    val retries: Long,
)

/** Counters of a GPU. */
@Serializable
public data class GpuStats(
    /** Bytes allocated on the GPU now. */
    val heldBytes: Long,
    /** Kernels launched. */
    val dispatches: Long,
    /** Waits for a result. */
    val readbacks: Long,
)

/** A GPU of this machine, hardware or software. */
@Serializable
public data class Device(
    /** The value of [EngineOptions.gpuIndex] that selects it. */
    val index: Int,
    /** The GPU's name. */
    val name: String,
    /** Vulkan, Metal or Dx12. */
    val api: String,
    /** The driver and its version. */
    val driver: String,
    /** Whether this is a software GPU, which the CPU emulates. */
    val software: Boolean,
    /** The features it lacks to compute models; null if it can. */
    val missing: String? = null,
    /** The largest buffer that a kernel can read, in bytes. */
    val maxBindingBytes: Long,
)
