//! Prints the processors of this machine, and the memory plans of a model under several budgets, without
//! loading it:
//!
//!     cargo run --release -p dollop --example plan -- MODEL.gguf

use dollop::{Engine, EngineOptions, Error};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args_os().nth(1).ok_or("usage: plan MODEL.gguf")?;
    for device in dollop::devices() {
        let missing = device.missing.map_or_else(String::new, |what| format!(" (cannot be used: {what})"));
        println!("{:?}: {} {}{missing}", device.backend, device.name, device.api);
    }
    let whole = Engine::plan(&model, &EngineOptions::default())?;
    println!("whole: {whole}");
    // Budgets from the smallest that works to one that holds everything.
    let all = whole.total_bytes();
    for part in [0, 4, 2, 1].map(|n: u64| all.checked_div(n).unwrap_or(1)) {
        match Engine::plan(&model, &EngineOptions::default().with_memory(part)) {
            Ok(plan) => {
                println!("{plan}");
                for level in plan.levels.iter().filter(|_| plan.streaming) {
                    let (resident, read) = (100.0 * level.resident, level.read_bytes >> 10);
                    println!("  {} bits: {resident:.0} % in memory, {read} kB read a token", level.bits);
                }
            }
            Err(Error::Budget { smallest, .. }) => {
                println!("the smallest budget is {} MB", smallest.div_ceil(1 << 20))
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
