//! The admission plugins by the names kube-apiserver gives them, and which of them are on.

use thiserror::Error;

macro_rules! plugins {
    ($($name:ident $on:literal $about:literal,)*) => {
        /// An admission plugin.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Plugin {
            $(#[doc = $about] $name,)*
        }

        /// All of them: name, whether it is on unless disabled.
        const ALL: &[(&str, Plugin, bool)] = &[$((stringify!($name), Plugin::$name, $on),)*];
    };
}

plugins! {
    AlwaysAdmit false "Refuses nothing.",
    AlwaysDeny false "Refuses everything.",
    AlwaysPullImages false "Pods pull their images whenever they start.",
    CertificateApproval true "Certificate requests are approved by whoever may approve for their signer.",
    CertificateSigning true "Certificates are written by whoever may sign for their signer.",
    CertificateSubjectRestriction true "Nobody gets a client certificate of `system:masters` by asking.",
    ClusterTrustBundleAttest true "Trust anchors of a signer are written by whoever may attest for it.",
    DefaultIngressClass true "Ingresses without a class have the default one.",
    DefaultStorageClass true "Claims without a class have the default one.",
    DefaultTolerationSeconds true "Pods stay a while on nodes that fail.",
    DenyServiceExternalIPs false "Services get no new external addresses.",
    ExtendedResourceToleration false "Pods that use extended resources tolerate nodes kept for these.",
    LimitPodHardAntiAffinityTopology false "Pods may keep others away from their host only.",
    LimitRanger true "Namespaces' limits of amounts are given and kept.",
    MutatingAdmissionPolicy true "Policies change objects.",
    MutatingAdmissionWebhook true "Webhooks change objects.",
    NamespaceAutoProvision false "Namespaces are made when something is created in them.",
    NamespaceExists false "Nothing is changed in a namespace that is not there.",
    NamespaceLifecycle true "Nothing is created in a namespace that is missing or going away.",
    NodeRestriction true "Nodes change themselves and their pods only.",
    OwnerReferencesPermissionEnforcement false "Owners are set by whoever could delete what they own.",
    PersistentVolumeClaimResize true "Claims grow where their class allows it.",
    PodSecurity true "Namespaces' security levels hold for their pods.",
    Priority true "Priority classes become numbers.",
    ResourceQuota true "Namespaces' quotas are kept.",
    RuntimeClass true "Runtime classes add their overhead and place.",
    ServiceAccount true "Pods have a service account and its token.",
    StorageObjectInUseProtection true "Claims and volumes stay while they are used.",
    TaintNodesByCondition true "New nodes get no pods before they are ready.",
    ValidatingAdmissionPolicy true "Policies refuse objects.",
    ValidatingAdmissionWebhook true "Webhooks refuse objects.",
}

/// Plugins that kube-apiserver has and this server has not.
const MISSING: [&str; 4] =
    ["EventRateLimit", "ImagePolicyWebhook", "PodNodeSelector", "PodTolerationRestriction"];

/// Why plugins cannot be chosen.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PluginError {
    /// There is none of that name.
    #[error("there is no admission plugin {0:?}")]
    Unknown(String),
    /// Kubernetes has it, this server has not.
    #[error("the admission plugin {0:?} is not offered by this server")]
    NotOffered(String),
    /// It is enabled and disabled at once.
    #[error("the admission plugin {0:?} is both enabled and disabled")]
    Both(String),
}

/// Which admission plugins are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionPlugins(u64);

impl Default for AdmissionPlugins {
    fn default() -> Self {
        let on = ALL.iter().filter(|(_, _, on)| *on);
        Self(on.fold(0, |bits, (_, plugin, _)| bits | bit(*plugin)))
    }
}

fn bit(plugin: Plugin) -> u64 {
    1 << plugin as u32
}

impl AdmissionPlugins {
    /// Those that are on by default, with some more and without some.
    ///
    /// # Errors
    /// For names that are unknown or in both lists.
    pub fn choose(enable: &[String], disable: &[String]) -> Result<Self, PluginError> {
        if let Some(both) = enable.iter().find(|name| disable.contains(name)) {
            return Err(PluginError::Both(both.clone()));
        }
        let mut chosen = Self::default();
        for name in enable {
            chosen.0 |= bit(named(name)?);
        }
        for name in disable.iter().filter(|name| !MISSING.contains(&name.as_str())) {
            chosen.0 &= !bit(named(name)?);
        }
        Ok(chosen)
    }

    pub(crate) fn has(&self, plugin: Plugin) -> bool {
        self.0 & bit(plugin) != 0
    }
}

fn named(name: &str) -> Result<Plugin, PluginError> {
    match ALL.iter().find(|(known, _, _)| *known == name) {
        Some((_, plugin, _)) => Ok(*plugin),
        None if MISSING.contains(&name) => Err(PluginError::NotOffered(name.into())),
        None => Err(PluginError::Unknown(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_chosen_by_name() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let chosen = AdmissionPlugins::choose(&list("AlwaysPullImages"), &list("ResourceQuota")).unwrap();
        assert!(chosen.has(Plugin::AlwaysPullImages) && !chosen.has(Plugin::ResourceQuota));
        assert!(chosen.has(Plugin::NamespaceLifecycle) && !chosen.has(Plugin::AlwaysDeny));
        let check = |enable: &str, disable: &str, expect: PluginError| {
            assert_eq!(AdmissionPlugins::choose(&list(enable), &list(disable)), Err(expect));
        };
        check("Nonsense", "", PluginError::Unknown("Nonsense".into()));
        check("", "Nonsense", PluginError::Unknown("Nonsense".into()));
        check("EventRateLimit", "", PluginError::NotOffered("EventRateLimit".into()));
        check("Priority", "Priority", PluginError::Both("Priority".into()));
        assert!(AdmissionPlugins::choose(&[], &list("EventRateLimit")).is_ok());
    }
}
