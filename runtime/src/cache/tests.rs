//! Gate 11: the cache against a naive one, over random histories: it never exceeds its share, planes are
//! prefixes, and the evicted plane has the least value and is not protected.

use super::*;
use proptest::prelude::*;

const EXPERTS: usize = 6;
const BYTES: [usize; 4] = [19, 8, 8, 16];

/// Resident planes as a set of (expert, plane), heats as a list.
#[derive(Default)]
struct Naive {
    planes: std::collections::BTreeSet<(usize, usize)>,
    heat: [f32; EXPERTS],
}

impl Naive {
    fn used(&self) -> usize {
        self.planes.iter().map(|&(_, p)| BYTES[p]).sum()
    }

    fn top(&self, e: usize) -> Option<usize> {
        self.planes.iter().filter(|&&(x, _)| x == e).map(|&(_, p)| p).max()
    }
}

fn worth(e: usize) -> Worth {
    std::array::from_fn(|p| if p < 2 { 1.0 } else { 0.5 / (1 + e + p) as f32 })
}

#[derive(Clone, Debug)]
enum Step {
    Warm(usize, f32),
    Cool(f32),
    /// Bring an expert to a number of planes while another expert's planes are protected.
    Want(usize, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..EXPERTS, 0.0f32..2.0).prop_map(|(e, m)| Step::Warm(e, m)),
        (0.1f32..1.0).prop_map(Step::Cool),
        (0..EXPERTS, 1..=BYTES.len(), 0..EXPERTS).prop_map(|(e, n, k)| Step::Want(e, n, k)),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_cache(capacity in 51usize..200, steps in proptest::collection::vec(step(), 1..80)) {
        let mut cache = LayerCache::new(capacity, BYTES.to_vec(), (0..EXPERTS).map(worth).collect());
        let mut naive = Naive::default();
        let mut evicted = 0;
        for step in steps {
            match step {
                Step::Warm(e, m) => { cache.warm(e, m); naive.heat[e] += m; }
                Step::Cool(d) => { cache.cool(d); naive.heat.iter_mut().for_each(|h| *h *= d); }
                Step::Want(e, n, kept) => {
                    let mut keep = [0u8; EXPERTS];
                    keep[e] = BYTES.len() as u8;
                    if kept != e {
                        keep[kept] = 1;
                    }
                    while cache.planes(e) < n {
                        let need = cache.bytes(cache.planes(e), cache.planes(e) + 1);
                        let mut stuck = false;
                        while cache.free() < need {
                            // The naive choice: all top planes that may be evicted, by value, then plane, then expert.
                            let mut tops: Vec<_> = (0..EXPERTS)
                                .filter_map(|x| Some((x, naive.top(x)?)))
                                .filter(|&(x, p)| p >= usize::from(keep[x]))
                                .map(|(x, p)| (naive.heat[x] * worth(x)[p], p, x))
                                .collect();
                            tops.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
                            let found = cache.coldest(&keep);
                            prop_assert_eq!(found.map(|f| (f.1, f.0)), tops.first().map(|t| (t.1, t.2)));
                            let Some((x, p, value)) = found else { stuck = true; break };
                            prop_assert!(value == naive.heat[x] * worth(x)[p]);
                            prop_assert_eq!(cache.drop_top(x), p);
                            naive.planes.remove(&(x, p));
                            evicted += 1;
                        }
                        if stuck {
                            break;
                        }
                        let p = cache.add_next(e);
                        prop_assert!(naive.planes.insert((e, p)), "plane {} twice", p);
                    }
                }
            }
            prop_assert!(cache.free() == capacity - naive.used());
            for e in 0..EXPERTS {
                // The planes are a prefix, so the highest one gives their number.
                let planes = naive.planes.iter().filter(|&&(x, _)| x == e).count();
                prop_assert_eq!(planes, naive.top(e).map_or(0, |p| p + 1));
                prop_assert_eq!(cache.planes(e), planes);
                prop_assert!(cache.heat(e) == naive.heat[e]);
            }
        }
        prop_assert!(evicted < 10_000);
    }
}

#[test]
fn the_coldest_loses_its_top_planes_first_and_bases_last() {
    let mut cache = LayerCache::new(102, BYTES.to_vec(), vec![[1.0; PLANES]; 3]);
    for e in 0..2 {
        cache.warm(e, (e + 1) as f32);
        (0..4).for_each(|_| {
            cache.add_next(e);
        });
    }
    let mut order = Vec::new();
    while let Some((e, p, _)) = cache.coldest(&[0; 3]) {
        cache.drop_top(e);
        order.push((e, p));
    }
    assert_eq!(order, [(0, 3), (0, 2), (0, 1), (0, 0), (1, 3), (1, 2), (1, 1), (1, 0)]);
    assert_eq!(cache.free(), cache.capacity());
}
