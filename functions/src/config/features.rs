//! `config-features`: fields of pods that templates may use, and behaviour that is off at first.

use std::collections::BTreeSet;

use super::{Wrong, read::Values};

/// Features with whether they are on where the map is silent.
const KNOWN: [(&str, bool); 33] = [
    ("multi-container", true),
    ("multi-container-probing", false),
    ("secure-pod-defaults", false),
    ("tag-header-based-routing", false),
    ("autodetect-http2", false),
    ("queueproxy.mount-podinfo", false),
    ("queueproxy.resource-defaults", false),
    ("kubernetes.containerspec-addcapabilities", false),
    ("kubernetes.podspec-affinity", false),
    ("kubernetes.podspec-dnsconfig", false),
    ("kubernetes.podspec-dnspolicy", false),
    ("kubernetes.podspec-fieldref", false),
    ("kubernetes.podspec-hostaliases", false),
    ("kubernetes.podspec-hostipc", false),
    ("kubernetes.podspec-hostnetwork", false),
    ("kubernetes.podspec-hostpid", false),
    ("kubernetes.podspec-init-containers", false),
    ("kubernetes.podspec-nodeselector", false),
    ("kubernetes.podspec-persistent-volume-claim", false),
    ("kubernetes.podspec-persistent-volume-write", false),
    ("kubernetes.podspec-priorityclassname", false),
    ("kubernetes.podspec-runtimeclassname", false),
    ("kubernetes.podspec-schedulername", false),
    ("kubernetes.podspec-securitycontext", false),
    ("kubernetes.podspec-shareprocessnamespace", false),
    ("kubernetes.podspec-tolerations", false),
    ("kubernetes.podspec-topologyspreadconstraints", false),
    ("kubernetes.podspec-volumes-csi", false),
    ("kubernetes.podspec-volumes-emptydir", true),
    ("kubernetes.podspec-volumes-ephemeral", false),
    ("kubernetes.podspec-volumes-hostpath", false),
    ("kubernetes.podspec-volumes-image", false),
    ("kubernetes.podspec-volumes-mount-propagation", false),
];

/// What is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features(BTreeSet<&'static str>);

impl Default for Features {
    fn default() -> Self {
        Self(KNOWN.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect())
    }
}

impl Features {
    pub(super) fn read(values: &Values<'_>) -> Result<Self, Wrong> {
        let mut on = BTreeSet::new();
        for (name, default) in KNOWN {
            let wanted = match values.get(name).map(str::to_ascii_lowercase).as_deref() {
                None => default,
                // "Allowed" lets objects through that use the field.
                Some("enabled" | "allowed" | "allowrootbounded") => true,
                Some("disabled") => false,
                Some(other) => {
                    return Err(Wrong::new(name, other, "enabled, allowed or disabled was expected"));
                }
            };
            if wanted {
                on.insert(name);
            }
        }
        Ok(Self(on))
    }

    /// Whether a feature is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}
