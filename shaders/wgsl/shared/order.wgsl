// Maps floats to unsigned numbers in a sampler's order: zeros are equal, and NaN (0 here) is below everything.

fn order(b: u32) -> u32 {
    if ((b & 0x7fffffffu) > 0x7f800000u) {
        return 0u;
    }
    let bits = select(b, 0u, b == 0x80000000u);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// The inverse of `order`: the bits of a float.
fn unordered(key: u32) -> u32 {
    return select(~key, key & 0x7fffffffu, (key >> 31u) == 1u);
}
