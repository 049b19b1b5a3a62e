// Sums that are the same in every kernel. WGSL allows compilers to reorder sums, in one kernel and not in another.
// They do not reorder fused multiply-adds. So these sums multiply by a one that compilers cannot know to be one.

var<private> one: f32;

// Call this first, with a nonzero value.
fn know_one(some: u32) {
    one = select(0.0, 1.0, some > 0u);
}

fn plus(sum: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    return fma(v, vec4(one), sum);
}

fn plus_single(sum: f32, v: f32) -> f32 {
    return fma(v, one, sum);
}

fn sum_of_four(v: vec4<f32>) -> f32 {
    let pairs = fma(v.xz, vec2(one), v.yw);
    return fma(pairs.x, one, pairs.y);
}

// The sum of 32 values.
fn sum_of_unit(x: array<vec4<f32>, 8>) -> f32 {
    var unit = x;
    var sum = vec4<f32>();
    for (var j = 0u; j < 8u; j++) {
        sum = plus(sum, unit[j]);
    }
    return sum_of_four(sum);
}

fn fixed_dot(a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, a.x * b.x)));
}
