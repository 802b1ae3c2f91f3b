//! Networking without privileges: pod addresses, services, and the way to agents behind NAT.
//!
//! - [`AddressPool`] gives each pod an address of its own out of 127.0.0.0/8.
//! - [`proxy`] listens on service addresses and passes connections on to ready endpoints;
//!   [`plan`] says, without any I/O, which listeners and backends there should be.
//! - [`tunnel`] carries streams to an agent over the one connection that the agent opened.
//! - [`dns`] answers the same names to programs that ask by the protocol.
//! - [`ingress`] leads HTTP from outside to pods, by host and path.
//! - [`policy`] says who may talk to whom, as NetworkPolicies want it.
//! - [`View`] keeps Services and EndpointSlices at hand; [`names`] resolves cluster names with it.

pub mod bind;
pub mod dns;
pub mod ingress;
pub mod names;
pub mod plan;
pub mod policy;
mod pool;
pub mod proxy;
mod slices;
mod srv;
pub mod tunnel;
mod view;

pub use pool::{AddressPool, PoolError, last_address};
pub use slices::Slices;
pub use view::View;
