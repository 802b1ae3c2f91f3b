//! Kinds of the group `networking.k8s.io`.

mod address;
mod ingress;
mod policy;

pub(crate) use address::{IpAddress, ServiceCidr};
pub(crate) use ingress::{Ingress, IngressClass};
pub(crate) use policy::NetworkPolicy;
