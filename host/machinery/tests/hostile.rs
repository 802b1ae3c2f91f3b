//! Input of strangers, bent and broken: whatever comes, every entry comes back, soon and without a panic.

#[path = "../../../fuzz/entries.rs"]
mod entries;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use entries::{ENTRIES, MAX_INPUT};
use proptest::prelude::*;

/// Longest that one input may take, on a busy machine and without optimization.
const WITHIN: Duration = Duration::from_secs(20);

const SEEDS: [&str; 8] = [
    include_str!("../../../examples/crd.yaml"),
    include_str!("../../../examples/deployment.yaml"),
    include_str!("../../../examples/rbac.yaml"),
    r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"c"}]}}}}"#,
    r#"[{"op":"add","path":"/spec/template/spec/containers/-","value":{"name":"x"}},{"op":"copy","from":"/spec","path":"/spec/x"},{"op":"remove","path":"/metadata/labels/a"}]"#,
    r#"{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"$patch":"delete","name":"c"}]}}}}"#,
    "a in (b, c), !d, e notin (f), g=h,i!=j",
    "self.spec.template.spec.containers.all(c, c.name.matches('^[a-z]+$')) && has(self.spec.replicas)",
];

/// What a seed becomes: pieces are cut out, repeated, or replaced by what parsers dislike.
fn bend(seed: &[u8], edits: &[(usize, usize, u8)]) -> Vec<u8> {
    const ODD: [&[u8]; 12] = [
        b"\0",
        b"\xff\xfe",
        b"{",
        b"[[[[[[[[",
        b"\"",
        b"&a *a",
        b"1e999",
        b"-9223372036854775809",
        b"~1",
        b"null",
        b"\n\t",
        b"((((",
    ];
    let mut bytes = seed.to_vec();
    for (from, length, what) in edits {
        let from = from % (bytes.len() + 1);
        let to = (from + length % 64).min(bytes.len());
        match what % 4 {
            0 => drop(bytes.drain(from..to)),
            1 => {
                let piece = bytes[from..to].repeat(usize::from(*what) % 7 + 1);
                bytes.splice(from..to, piece);
            }
            2 => drop(bytes.splice(from..to, ODD[usize::from(*what) % ODD.len()].iter().copied())),
            _ => bytes.iter_mut().skip(from).take(to - from).for_each(|b| *b ^= what),
        }
        bytes.truncate(MAX_INPUT);
    }
    bytes
}

fn all(input: &[u8]) {
    for (name, entry) in ENTRIES {
        let began = Instant::now();
        entry(input);
        assert!(
            began.elapsed() < WITHIN,
            "{name} took {:?} for {:?}",
            began.elapsed(),
            String::from_utf8_lossy(input)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn bent_manifests_are_survived(
        seed in 0..SEEDS.len(),
        edits in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..12),
    ) {
        all(&bend(SEEDS[seed].as_bytes(), &edits));
    }

    #[test]
    fn noise_is_survived(input in proptest::collection::vec(any::<u8>(), 0..256)) {
        all(&input);
    }
}

#[test]
fn towers_and_bombs_are_survived() {
    let bomb: String = (0..40)
        .map(|i| format!("a{}: &a{} [{}]\n", i + 1, i + 1, vec![format!("*a{i}"); 9].join(",")))
        .fold("a0: &a0 [x,x,x]\n".to_owned(), |all, line| all + &line);
    let inputs = [
        "[".repeat(MAX_INPUT),
        "{\"a\":".repeat(MAX_INPUT / 5),
        "- ".repeat(MAX_INPUT / 2),
        format!("{{\"spec\":{}}}", "[".repeat(5000) + &"]".repeat(5000)),
        bomb,
        "(".repeat(MAX_INPUT),
        "a,".repeat(MAX_INPUT / 2),
        "\"".repeat(MAX_INPUT),
    ];
    // The stack of a server's worker, which is smaller than that of the main thread.
    let (done, finished) = mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        inputs.iter().for_each(|input| all(input.as_bytes()));
        // Nobody listens any more only if the test gave up.
        let _ = done.send(());
    });
    thread.unwrap().join().expect("an entry does not survive");
    assert!(finished.try_recv().is_ok());
}
