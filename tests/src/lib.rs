//! What the whole program promises, and the tests that prove it.
//!
//! `ledger/features.tsv` has a row for every feature: its proof is the path of a test
//! (`package::test_name`), or `not yet`.

pub mod agent;
pub mod containerd;
pub mod etcd;
pub mod ledger;
pub mod node;
pub mod place;
pub mod program;
pub mod required;
