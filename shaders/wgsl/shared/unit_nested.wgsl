// One unit of nested weights times inputs. A group's zero point counts once per sum of inputs.

#import one

// A quad's unit times the unit `at` of every token's inputs. A unit's sum is rounded before it is added, so
// that it is the same if another invocation adds it: a compiler may fuse a product and a sum, but not two sums.
fn add_loaded(m: Matrix, unit: Loaded, at: u32, sums: ptr<function, Sums>) {
    let bits = unit.bits;
    let codes = unit.codes;
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = columns(packed(m, bits, j));
        for (var t = 0u; t < TOKENS; t++) {
            let x = vector_of(t, at, j);
            var d = fma(w[0], vec4(x.x), dots[t]);
            d = fma(w[1], vec4(x.y), d);
            d = fma(w[2], vec4(x.z), d);
            dots[t] = fma(w[3], vec4(x.w), d);
        }
    }
    let scale = codes.scale * m.alpha;
    let zero = vec4(m.centre) - codes.zero;
    for (var t = 0u; t < TOKENS; t++) {
        let product = fma(zero, vec4(sum_of(t, at)), dots[t]);
        (*sums)[t] = plus((*sums)[t], fma(scale, product, vec4(m.nothing)));
    }
}

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, quad: u32, sums: ptr<function, Sums>) {
    add_loaded(m, load_unit(m, tile, unit, quad), at, sums);
}
