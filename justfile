# The gate that a change must pass.
check *ARGS:
    ./check {{ARGS}}

# Speed of the inner loops.
bench:
    cargo bench -p dollop-benches

# Talks with the model that comes with Dollop.
chat:
    cargo run --release -- chat
