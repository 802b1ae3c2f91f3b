//! Pods of containers as a kubelet runs them: what containers share, how they live and end, how they are
//! watched, and what they are given. Skipped, with a word, where containers cannot be run.

mod devices;
mod lives;
mod node;
mod probes;
mod sharing;

use wasmk_tests::program::Program;

const STATUS: &str = "{.status.containerStatuses";

/// A field of the status of one of a pod's containers.
fn of(container: &str, field: &str) -> String {
    format!("{STATUS}[?(@.name=='{container}')]{field}}}")
}

fn number(p: &Program, object: &str, path: &str) -> u32 {
    p.value(object, path).parse().unwrap_or(0)
}
