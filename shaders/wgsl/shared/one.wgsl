// Sums that are the same in every kernel. Where nothing forbids it, and WGSL has no word for that, a compiler may put sums in
// another order, in one kernel and not in another; it leaves alone what multiplies on the way. So these multiply by one,
// which compilers do not know to be one.

var<private> one: f32;

// To be called first, with something that is not zero.
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

// Of 32 values.
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
