//! Fields a write never changes, and that its manager therefore does not come to own.

use wasmk_api::GroupKind;

use super::{Comparison, Set};

/// Which fields a write to a resource or subresource leaves alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reset {
    /// None: everything can be written.
    #[default]
    Nothing,
    /// These and everything below them.
    Fields(Set),
    /// All but these and what is below them.
    AllBut(Set),
}

impl Reset {
    /// What Kubernetes resets: a main resource with a status subresource leaves the status alone, a
    /// status subresource everything that is not status.
    pub fn of(kind: &GroupKind, subresource: &str, has_status: bool) -> Self {
        let fields: &[&[&str]] = match (subresource, &*kind.group, &*kind.kind) {
            ("", "certificates.k8s.io", "CertificateSigningRequest") => &[&["spec"], &["status"]],
            ("", ..) if has_status => &[&["status"]],
            ("status", "", "Pod") => {
                &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
            }
            ("status", "apps", "Deployment") => &[&["spec"], &["metadata", "labels"]],
            ("status", "apiextensions.k8s.io", _)
            | ("status", "storage.k8s.io", _)
            | ("status", "admissionregistration.k8s.io", _) => &[&["spec"], &["metadata"]],
            ("status" | "approval", ..) => &[&["spec"]],
            ("ephemeralcontainers", ..) => return Self::AllBut(Set::of(&[&["spec", "ephemeralContainers"]])),
            _ => return Self::Nothing,
        };
        Self::Fields(Set::of(fields))
    }

    pub(super) fn filter(&self, set: &Set) -> Set {
        match self {
            Self::Nothing => set.clone(),
            Self::Fields(fields) => set.recursive_difference(fields),
            Self::AllBut(fields) => set.under(fields),
        }
    }

    pub(super) fn filter_all(&self, comparison: Comparison) -> Comparison {
        match self {
            Self::Nothing => comparison,
            _ => comparison.map(|set| self.filter(set)),
        }
    }
}
