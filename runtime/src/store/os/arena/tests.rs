//! Slabs are disjoint and keep their contents when moved; memory beyond a limit goes back to the system.

use super::*;

#[test]
fn slabs_are_disjoint_come_back_and_slide() {
    let arena = Arena::new(8 * 512, 512).unwrap();
    let mut slabs: Vec<Slab> = (1..=4u8)
        .map(|i| {
            let mut s = arena.alloc(700, End::Low).unwrap();
            s.fill(i);
            s
        })
        .collect();
    assert!(arena.alloc(1, End::Low).is_none() && arena.free_bytes() == 0);
    drop(slabs.remove(2));
    drop(slabs.remove(0));
    assert!(arena.free_bytes() == 2048 && arena.alloc(1025, End::Low).is_none(), "two holes, not one");
    slabs.iter_mut().for_each(Slab::slide);
    let mut big = arena.alloc(2048, End::Low).unwrap();
    big.fill(9);
    assert!(slabs[0].iter().all(|&b| b == 2) && slabs[1].iter().all(|&b| b == 4));
    assert_eq!((slabs[0].offset(), slabs[1].offset(), big.offset()), (0, 1024, 2048));
    drop(slabs);
    drop(big);
    assert_eq!(arena.free_bytes(), 8 * 512);
    assert!(arena.alloc(8 * 512, End::High).is_some());
    assert!(arena.alloc(usize::MAX / 2, End::Low).is_none());
}

#[test]
fn pieces_are_the_whole() {
    let arena = Arena::new(8 * 512, 512).unwrap();
    let below = arena.alloc(512, End::Low).unwrap();
    let mut whole = arena.alloc(1700, End::Low).unwrap();
    whole.fill(7);
    let mut pieces = whole.cut(512);
    assert_eq!(pieces.iter().map(|p| p.len()).collect::<Vec<_>>(), [512, 512, 512, 164]);
    assert_eq!(arena.free_bytes(), 3 * 512);
    pieces[3].fill(8);
    let whole = Slab::join(pieces);
    assert_eq!((whole.offset(), whole.len(), arena.free_bytes()), (512, 1700, 3 * 512));
    assert!(whole[..1536].iter().all(|&b| b == 7) && whole[1536..].iter().all(|&b| b == 8));
    // Dropping a piece frees its own range.
    drop(whole.cut(1024).remove(0));
    assert_eq!(arena.free_bytes(), 7 * 512);
    drop(below);
    assert_eq!(arena.free_bytes(), 8 * 512);
}

#[test]
fn room_is_made_by_moving_least() {
    let arena = Arena::new(12 * 512, 512).unwrap();
    // Pieces of 2, 1, 1, 3, 2, 3 granules; the second, fourth and last are freed.
    let mut slabs: Vec<Option<Slab>> =
        [2, 1, 1, 3, 2, 3].map(|n| Some(arena.alloc(n * 512, End::Low).unwrap())).into();
    slabs[1] = None;
    slabs[3] = None;
    slabs[5] = None;
    let all = |_: usize| true;
    assert_eq!(arena.room(3 * 512, &all), Some(Room::Slide(vec![])), "it fits as it is");
    let slide = |slabs: &[usize]| Some(Room::Slide(slabs.iter().map(|s| s * 512).collect()));
    // Four granules: slide past the single one in between, not past the two.
    assert_eq!(arena.room(4 * 512, &all), slide(&[3]));
    // If that one may not move, slide past the two: three and three.
    assert_eq!(arena.room(4 * 512, &|at| at != 3 * 512), slide(&[7]));
    assert_eq!(arena.room(7 * 512, &all), slide(&[3, 7]));
    assert_eq!(arena.room(7 * 512, &|at| at != 7 * 512), None);
    assert_eq!(arena.room(8 * 512, &all), None);
    slabs[2].as_mut().unwrap().slide();
    let four = arena.alloc(4 * 512, End::High).unwrap();
    assert_eq!((four.offset(), arena.free_bytes()), (3 * 512, 3 * 512));
}

#[test]
fn a_slab_jumps_where_sliding_would_move_more() {
    let arena = Arena::new(9 * 512, 512).unwrap();
    // Granules of 1, 1, 5, 1, 1: the second and the last are freed, four slabs apart.
    let mut slabs: Vec<Option<Slab>> =
        [1, 1, 5, 1, 1].map(|n| Some(arena.alloc(n * 512, End::Low).unwrap())).into();
    slabs[3].as_mut().unwrap().fill(7);
    slabs[1] = None;
    slabs[4] = None;
    // Sliding would move the five and the one after it.
    assert_eq!(arena.room(2 * 512, &|_| true), Some(Room::Jump { slab: 0, to: 8 * 512 }));
    assert_eq!(
        arena.room(2 * 512, &|at| at != 0),
        Some(Room::Jump { slab: 7 * 512, to: 512 }),
        "the first may not move"
    );
    slabs[3].as_mut().unwrap().jump(512);
    assert!(slabs[3].as_ref().unwrap().iter().all(|&b| b == 7));
    assert_eq!(arena.alloc(2 * 512, End::High).unwrap().offset(), 7 * 512);
    let into_others = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        slabs[0].as_mut().unwrap().jump(2 * 512);
    }));
    assert!(into_others.is_err());
    drop(slabs);
    assert_eq!(arena.free_bytes(), 9 * 512);
}

#[test]
fn what_is_beyond_a_limit_is_the_systems_until_it_is_raised() {
    let page = 64 << 10;
    let arena = Arena::new(8 * page, 512).unwrap();
    let low = arena.alloc(page, End::Low).unwrap();
    let mut high = arena.alloc(page, End::High).unwrap();
    high.fill(7);
    assert!(arena.limit(2 * page) && !arena.give_back(), "a slab is still there");
    assert!(high.iter().all(|&b| b == 7));
    assert!(arena.alloc(2 * page, End::Low).is_none() && arena.room(page, &|_| true).is_none());
    let mut moved = arena.alloc(page, End::High).unwrap();
    moved.copy_from_slice(&high);
    drop(high);
    assert_eq!((moved.offset(), arena.bytes(), arena.free_bytes()), (page, 2 * page, 0));
    assert_eq!(arena.give_back(), cfg!(unix));
    assert!(!arena.limit(9 * page) && arena.limit(8 * page));
    // The memory can be used again, and the old contents are gone.
    let again = arena.alloc(6 * page, End::Low).unwrap();
    assert!(!cfg!(unix) || again.iter().all(|&b| b == 0));
    assert!(moved.iter().all(|&b| b == 7) && low.len() == page && arena.free_bytes() == 0);
}
