//! Launches on several host threads at once, as parallel tests make them, do not disturb each other.

use super::trial::{Arg, Trial, input, output, values};

#[test]
fn launches_on_several_threads_are_independent() {
    let right = |first: u32| {
        let x: Vec<u32> = (first..first + 320).collect();
        let args = vec![input(&x), output::<u32>(320), Arg::U32(5)];
        Trial { file: "copies.cu", kernel: "reverse_right", blocks: 1, threads: 64, shared_bytes: 512, args }
    };
    let wrong = Trial { kernel: "reverse_without_barrier", ..right(0) };
    let deep = Trial {
        file: "bounds.cu",
        kernel: "recurse",
        blocks: 1,
        threads: 2,
        shared_bytes: 0,
        args: vec![output::<u32>(2), Arg::U32(100_000)],
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (wrong, deep) = (&wrong, &deep);
            scope.spawn(move || {
                for round in 0..20 {
                    let Some(outcome) = right(thread * 100 + round).run(u64::from(round)) else { return };
                    let found = values::<u32>(&outcome.unwrap()[0]);
                    assert_eq!(found[0], thread * 100 + round + 63);
                    assert!(wrong.run(u64::from(round)).unwrap().is_err());
                    assert!(deep.run(u64::from(round)).unwrap().unwrap_err().contains("overflows its stack"));
                }
            });
        }
    });
}
