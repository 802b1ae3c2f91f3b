//! Who may use the API, as a client on the network finds out: authentication, authorization, admission, audit.

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod audit;
mod certificates;
mod decisions;
mod expressions;
mod nodes;
mod recorded;
mod remote;
mod surface;
mod world;
