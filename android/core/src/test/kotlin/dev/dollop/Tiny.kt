// A model of one small layer. A token takes microseconds, so that the cost of delivering it to Kotlin can be measured.
package dev.dollop

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Path
import kotlin.io.path.createDirectories
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText
import kotlin.random.Random
import kotlinx.serialization.json.add
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonArray
import kotlinx.serialization.json.putJsonObject

/** Writes and opens the model. */
internal object Tiny {
    private const val WIDTH = 32
    private const val VOCAB = 64

    /** Converts the model into [folder] and opens it. */
    suspend fun open(folder: Path): Engine {
        val source = write(folder.resolve("tiny")).toString()
        return Engine.open(source, EngineOptions(threads = 1, cacheFolder = folder.resolve("tiny-cache").toString()))
    }

    /** Writes the model in Hugging Face's format: a configuration, random weights, and a tokenizer with one character per token. */
    fun write(folder: Path): Path {
        folder.createDirectories()
        folder.resolve("config.json").writeText(config())
        folder.resolve("tokenizer.json").writeText(tokenizer())
        folder.resolve("model.safetensors").writeBytes(weights())
        return folder
    }

    private fun config() = buildJsonObject {
        putJsonArray("architectures") { add("LlamaForCausalLM") }
        put("model_type", "llama")
        put("hidden_act", "silu")
        for (width in listOf("hidden_size", "intermediate_size")) put(width, WIDTH)
        for (one in listOf("num_hidden_layers", "num_attention_heads", "num_key_value_heads")) put(one, 1)
        put("head_dim", WIDTH)
        put("max_position_embeddings", 4096)
        put("rms_norm_eps", 1e-6)
        put("rope_theta", 10000.0)
        put("tie_word_embeddings", false)
        put("vocab_size", VOCAB)
    }.toString()

    private fun tokenizer() = buildJsonObject {
        put("version", "1.0")
        putJsonArray("added_tokens") {}
        putJsonObject("model") {
            put("type", "BPE")
            putJsonObject("vocab") { for (id in 0 until VOCAB) put(('0' + id).toString(), id) }
            putJsonArray("merges") {}
        }
        putJsonObject("decoder") { put("type", "Fuse") }
    }.toString()

    private fun weights(): ByteArray {
        val square = listOf(WIDTH, WIDTH)
        val layer = "model.layers.0"
        val shapes = buildMap {
            put("lm_head.weight", listOf(VOCAB, WIDTH))
            put("model.embed_tokens.weight", listOf(VOCAB, WIDTH))
            put("model.norm.weight", listOf(WIDTH))
            for (norm in listOf("input_layernorm", "post_attention_layernorm")) put("$layer.$norm.weight", listOf(WIDTH))
            for (part in listOf("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")) put("$layer.$part.weight", square)
            for (part in listOf("q_proj", "k_proj", "v_proj", "o_proj")) put("$layer.self_attn.$part.weight", square)
        }
        var end = 0
        val header = buildJsonObject {
            for ((name, shape) in shapes) {
                putJsonObject(name) {
                    put("dtype", "F32")
                    putJsonArray("shape") { shape.forEach { add(it) } }
                    val begin = end
                    end += 4 * shape.reduce(Int::times)
                    putJsonArray("data_offsets") { add(begin); add(end) }
                }
            }
        }.toString().toByteArray()
        val bytes = ByteBuffer.allocate(8 + header.size + end).order(ByteOrder.LITTLE_ENDIAN)
        bytes.putLong(header.size.toLong()).put(header)
        val random = Random(5)
        while (bytes.hasRemaining()) bytes.putFloat(random.nextFloat() - 0.5f)
        return bytes.array()
    }
}
