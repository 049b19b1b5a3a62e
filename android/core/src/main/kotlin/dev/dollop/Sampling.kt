// How tokens are chosen. Names and meanings are those of `dollop_sampling` in dollop.h.
package dev.dollop

import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.KSerializer
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.descriptors.PrimitiveKind
import kotlinx.serialization.descriptors.PrimitiveSerialDescriptor
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.descriptors.nullable
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder

/** Mirostat (Basu et al., 2020), which replaces all sampling steps except the temperature. */
@Serializable
public enum class Mirostat {
    /** Off: the other steps are used. */
    @SerialName("off") OFF,

    /** As in the paper: the number of candidates is estimated from a Zipf exponent. */
    @SerialName("v1") V1,

    /** All tokens up to a maximum surprise are candidates. */
    @SerialName("v2") V2,
}

/**
 * A number to add to the logit of a token.
 *
 * @property token the token's id
 * @property bias the number: finite, or minus infinity for a token that is never chosen
 */
@Serializable
public data class LogitBias(val token: Int, @Serializable(with = Bias::class) val bias: Float)

/** A bias in JSON, which has no infinity: minus infinity is null. */
@OptIn(ExperimentalSerializationApi::class)
internal object Bias : KSerializer<Float> {
    override val descriptor: SerialDescriptor = PrimitiveSerialDescriptor("dev.dollop.Bias", PrimitiveKind.FLOAT).nullable

    override fun serialize(encoder: Encoder, value: Float) =
        if (value == Float.NEGATIVE_INFINITY) encoder.encodeNull() else encoder.encodeFloat(value)

    override fun deserialize(decoder: Decoder): Float =
        if (decoder.decodeNotNullMark()) decoder.decodeFloat() else Float.NEGATIVE_INFINITY.also { decoder.decodeNull() }
}

/**
 * How tokens are chosen.
 *
 * Null selects what the model's file recommends, or the library's default if it recommends nothing. Each property says
 * which value switches its step off.
 */
@Serializable
public data class Sampling(
    /** Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token. */
    val temperature: Float? = null,
    /** Keeps only this many of the likeliest tokens; 0 keeps all. */
    val topK: Int? = null,
    /** Keeps only the likeliest tokens that together have this probability; 1 keeps all. */
    val topP: Float? = null,
    /** Keeps only tokens at least this fraction as likely as the likeliest; 0 keeps all. */
    val minP: Float? = null,
    /**
     * Keeps only the tokens whose surprise is nearest to the expected one, until together they have this probability; 1
     * keeps all.
     */
    val typicalP: Float? = null,
    /** Keeps only logits within this many standard deviations of the highest; 0 keeps all. */
    val topNSigma: Float? = null,
    /** How often XTC drops all but the least likely of the probable tokens, as a probability; 0 switches XTC off. */
    val xtcProbability: Float? = null,
    /** Probability from which XTC counts a token as probable; more than 0.5 switches XTC off. */
    val xtcThreshold: Float? = null,
    /** Divides the logits of recent tokens, or multiplies negative ones; 1 has no effect. */
    val repeatPenalty: Float? = null,
    /** Number of previous tokens that count as recent; 0 switches all penalties off. */
    val repeatLastN: Int? = null,
    /** Subtracted from the logits of recent tokens; 0 has no effect. */
    val presencePenalty: Float? = null,
    /** Subtracted from the logits of recent tokens, once per occurrence; 0 has no effect. */
    val frequencyPenalty: Float? = null,
    /**
     * DRY: a token that would continue a repetition of n tokens loses `dryMultiplier * dryBase^(n - dryAllowedLength)`;
     * 0 switches DRY off.
     */
    val dryMultiplier: Float? = null,
    /** See [dryMultiplier]. */
    val dryBase: Float? = null,
    /** DRY ignores repetitions shorter than this. */
    val dryAllowedLength: Int? = null,
    /** Number of previous tokens in which DRY looks for repetitions; 0 switches DRY off. */
    val dryLastN: Int? = null,
    /** Texts that DRY matches no repetition across, at most 64. */
    val dryBreakers: List<String>? = null,
    /** Replaces all steps except the temperature. */
    val mirostat: Mirostat? = null,
    /** The surprise per token that mirostat aims at, in bits. */
    val mirostatTau: Float? = null,
    /** Learning rate of mirostat. */
    val mirostatEta: Float? = null,
    /** Added to the logits of single tokens, before all other steps. */
    val logitBias: List<LogitBias>? = null,
    /** The steps to apply, in order, such as "penalties;top_k;top_p;temperature". */
    val chain: String? = null,
    /** Seed of the random sequence. The same seed, tokens and budget give the same text. */
    val seed: Long? = null,
) {
    /** Common choices. */
    public companion object {
        /** Always takes the likeliest token. */
        public val Greedy: Sampling = Sampling(temperature = 0f)
    }
}
