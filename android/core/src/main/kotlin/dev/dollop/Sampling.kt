// How tokens are chosen. Names and meanings are those of `dollop_sampling` in dollop.h.
package dev.dollop

import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable

/** Takes the place of all steps but the temperature. */
@Serializable
public enum class Mirostat {
    @SerialName("off") OFF,
    @SerialName("v1") V1,
    @SerialName("v2") V2,
}

/** Added to the logit of a token; [bias] is finite. */
@Serializable
public data class LogitBias(val token: Int, val bias: Float)

/** How tokens are chosen; what is null is the model's own. A number that switches a step off is named with it. */
@Serializable
public data class Sampling(
    /** Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token. */
    val temperature: Float? = null,
    /** Only the likeliest; 0 for all. */
    val topK: Int? = null,
    /** Only the likeliest that together have this probability; 1 for all. */
    val topP: Float? = null,
    /** Only those at least this part as likely as the likeliest; 0 for all. */
    val minP: Float? = null,
    /** Only those whose surprise is nearest to the expected one; 1 for all. */
    val typicalP: Float? = null,
    /** Only logits within this many standard deviations of the highest; 0 for all. */
    val topNSigma: Float? = null,
    /** How often all but the least likely of the probable tokens are left out (XTC); 0 for never. */
    val xtcProbability: Float? = null,
    /** What counts as probable for XTC. */
    val xtcThreshold: Float? = null,
    /** Divides the logit of recent tokens; 1 for none. */
    val repeatPenalty: Float? = null,
    /** How many tokens back are recent. */
    val repeatLastN: Int? = null,
    /** Subtracted from the logit of recent tokens; 0 for none. */
    val presencePenalty: Float? = null,
    /** The same, once for each time. */
    val frequencyPenalty: Float? = null,
    /** DRY: a token that would continue a repetition of n tokens loses multiplier * base^(n - allowed length); 0 for nothing. */
    val dryMultiplier: Float? = null,
    val dryBase: Float? = null,
    val dryAllowedLength: Int? = null,
    val dryLastN: Int? = null,
    val mirostat: Mirostat? = null,
    /** Surprise per token that mirostat aims at, in bits. */
    val mirostatTau: Float? = null,
    /** How fast mirostat learns. */
    val mirostatEta: Float? = null,
    val logitBias: List<LogitBias>? = null,
    /** Start of the random sequence: the same seed, tokens and budget give the same text. */
    val seed: Long? = null,
) {
    internal fun json(): String = json.encodeToString(this)

    public companion object {
        /** Always the likeliest token. */
        public val Greedy: Sampling = Sampling(temperature = 0f)
    }
}
