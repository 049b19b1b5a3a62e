// Many tokens' prepared inputs of `linear`, with their norm if there is one.

#import prepared

fn source(t: u32) -> u32 {
    return min(first_token + t, p.tokens - 1u);
}

fn take_scale(fresh: bool, lane: u32) {}

fn scale_of_token(t: u32) -> f32 {
    return prepared_scale(t, p.cols);
}

fn write_norm(lane: u32) {}
