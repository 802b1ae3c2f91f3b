//! Prints how many features of each area are proven by a test.
#![allow(clippy::print_stdout, reason = "printing is all it does")]

fn main() {
    print!("{}", wasmk_tests::ledger::summary(&wasmk_tests::ledger::rows()));
}
