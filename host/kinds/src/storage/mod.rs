//! Volumes, claims, and the kinds of the group `storage.k8s.io`.

pub(crate) mod claim;
pub(crate) mod class;
pub(crate) mod csi;
pub(crate) mod volume;
