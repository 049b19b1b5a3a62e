//! Gate 16: options of a program. Budgets and options that cannot work are refused, departures from the
//! router's choice are counted, and orders and limits of refinements hold.

use super::*;
use dollop::Routing;
use dollop::internal::sched::Order;

#[test]
fn gate_16_budgets_that_cannot_work_and_contradictions_are_refused() {
    let model = default_model();
    let exact = options(Precision::Exact(Level::B4));
    let refused = |o: &EngineOptions| match Engine::open(Path::new(&model), o) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("opened"),
    };
    let tiny = exact.clone().with_memory(5 << 20);
    let Err(Error::Budget { smallest, .. }) = Engine::open(&model, &tiny) else { panic!("opened in 5 MB") };
    assert!(refused(&tiny).contains(&format!("{}M", smallest.div_ceil(1 << 20))));
    // The number in the error works.
    let least = exact.clone().with_memory(smallest);
    let engine = open(&least);
    assert!(engine.memory_plan().total_bytes() <= smallest);
    // The plan has room for one session. A second one fails until the first is dropped.
    let first = engine.session(SessionOptions::default()).unwrap();
    assert!(engine.session(SessionOptions::default()).is_err());
    drop(first);
    engine.session(SessionOptions::default()).unwrap();

    for routing in [
        set!(Routing { top_k: Some(4), ..Routing::default() }),
        set!(Routing { skip_cold: 0.1, ..Routing::default() }),
        set!(Routing { cache_prior: 0.1, ..Routing::default() }),
    ] {
        assert!(refused(&set!(EngineOptions { routing, ..exact.clone() })).contains("exact"));
    }
    let b8 = options(Precision::Exact(Level::B8));
    assert!(refused(&b8).contains("up to 4 bits"));
}

#[test]
fn gate_16_lossy_routing_is_counted_and_saves_reads() {
    let adaptive = Precision::Adaptive { quality: 3.5, floor: Level::B3 };
    let base = with_share(options(adaptive), 0.4);
    let run = |routing: Routing| {
        let engine = open(&set!(EngineOptions { routing, ..base.clone() }));
        let all = logits(&engine);
        assert!(all.iter().flatten().all(|x| x.is_finite()));
        (stats(&engine).bytes_wanted, engine.routing_departures())
    };
    let (own, none) = run(Routing::default());
    assert_eq!(none, (0, 0));
    let (read, (dropped, _)) = run(set!(Routing { skip_cold: 0.08, ..Routing::default() }));
    assert!(dropped > 0 && read < own, "{dropped} dropped, {read} of {own} bytes");
    let (read, (_, redirected)) = run(set!(Routing { cache_prior: 0.3, ..Routing::default() }));
    assert!(redirected > 0 && read < own, "{redirected} redirected, {read} of {own} bytes");
    let (read, _) = run(set!(Routing { top_k: Some(6), ..Routing::default() }));
    assert!(read < own);
}

#[test]
fn gate_16_orders_and_byte_limits_are_kept() {
    let adaptive = Precision::Adaptive { quality: 2.0, floor: Level::B2 };
    let mut o = with_share(options(adaptive), 1.3);
    for order in [Order::Worth, Order::Arrival, Order::Gate] {
        o.streaming.order = order;
        let mut read = Vec::new();
        for limit in [0, 200_000] {
            o.streaming.refinement_bytes = Some(limit);
            let engine = open(&o);
            logits(&engine);
            let s = stats(&engine);
            read.push((s.planes_wanted[1], s.mean_bits()));
        }
        assert!(read[0].0 == 0 && read[1].0 > 0 && read[1].1 > read[0].1, "{order:?}: {read:?}");
    }
}
