// The best experts of a token, and their gates.
//
// A file that imports this has parameters `experts`, `top_k`, `renormalize` and `scale`. It defines
// `MAX_EXPERTS`, `fn logit(token: u32, e: u32) -> u32`, the router's logit as bits, and
// `fn standing(token: u32, e: u32) -> u32`, the score by which experts are chosen.

#import one
#import reduce

const MAX_TOP_K = 64u;

var<workgroup> keys: array<vec4<u32>, MAX_EXPERTS / 4u>;
var<workgroup> chosen: array<u32, MAX_TOP_K>;
var<workgroup> gates: array<f32, MAX_TOP_K>;

// A total order of floats, NaN included, as unsigned numbers below 0xffffffff.
fn ordered(b: u32) -> u32 {
    return min(select(b | 0x80000000u, ~b, (b >> 31u) == 1u), 0xfffffffeu);
}

// Writes the best to `chosen`, best first; ties go to the lower index.
fn choose(token: u32, lane: u32) {
    let vectors = (p.experts + 3u) / 4u;
    for (var i = lane; i < vectors; i += 128u) {
        // Padding is sorted after all experts.
        var key = vec4<u32>();
        for (var j = 0u; j < min(4u, p.experts - 4u * i); j++) {
            key[j] = ordered(standing(token, 4u * i + j));
        }
        keys[i] = key;
    }
    workgroupBarrier();
    for (var e = lane; e < p.experts; e += 128u) {
        // An expert's rank is the number of experts before it: those with a greater key, and those with an
        // equal key and a lower index.
        let quad = keys[e / 4u];
        let own = quad[e % 4u];
        var before = select(vec4(0u), vec4(1u), (quad == vec4(own)) & (vec4(0u, 1u, 2u, 3u) < vec4(e % 4u)));
        for (var i = 0u; i < vectors; i += 4u) {
            // Loaded together; the last vector may be loaded twice.
            var some: array<vec4<u32>, 4>;
            for (var j = 0u; j < 4u; j++) {
                some[j] = keys[min(i + j, vectors - 1u)];
            }
            for (var j = 0u; j < 4u; j++) {
                let least = select(own + select(1u, 0u, i + j < e / 4u), 0xffffffffu, i + j >= vectors);
                before += select(vec4(0u), vec4(1u), some[j] >= vec4(least));
            }
        }
        let rank = (before.x + before.y) + (before.z + before.w);
        if (rank < p.top_k) {
            chosen[rank] = e;
        }
    }
    workgroupBarrier();
}

// Writes the gates of the experts in `chosen` to `gates`: their shares of a softmax over all experts or, with
// `renormalize`, over the chosen ones.
fn weigh(token: u32, lane: u32) {
    know_one(p.experts);
    var high = -3.4e38;
    for (var e = lane; e < p.experts; e += 128u) {
        high = max(high, bitcast<f32>(logit(token, e)));
    }
    let highest = max_of_all(high, lane);
    var exps = 0.0;
    for (var e = lane; e < p.experts; e += 128u) {
        exps = plus_single(exps, exp(bitcast<f32>(logit(token, e)) - highest));
    }
    let total = sum_of_all(exps, lane);
    for (var r = lane; r < p.top_k; r += 128u) {
        gates[r] = exp(bitcast<f32>(logit(token, chosen[r])) - highest) / total;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var r = 0u; r < p.top_k; r++) {
        sum = plus_single(sum, gates[r]);
    }
    let scale = select(p.scale, p.scale / sum, p.renormalize == 1u && sum > 0.0);
    workgroupBarrier();
    for (var r = lane; r < p.top_k; r += 128u) {
        gates[r] *= scale;
    }
    workgroupBarrier();
}
