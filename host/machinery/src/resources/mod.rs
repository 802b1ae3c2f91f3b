//! The table of what is served: built-in resources by default, custom ones as they are defined.
//!
//! A [`Registry`] is an immutable snapshot; definitions make a new one that the server swaps in.

mod builtin;
pub mod convert;
pub mod discovery;
mod version;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use wasmk_api::{GroupResource, GroupVersion, Gvk, Gvr};

use crate::schema::KindSchema;
pub use version::compare_versions;

/// A served resource in one version.
#[derive(Debug, Default)]
pub struct Resource {
    /// The group, empty for core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural name, as in paths.
    pub plural: String,
    /// The singular name.
    pub singular: String,
    /// The kind of its objects.
    pub kind: String,
    /// The kind of its lists.
    pub list_kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names for command lines.
    pub short_names: Vec<String>,
    /// Categories (`all`).
    pub categories: Vec<String>,
    /// Verbs, in the order discovery lists them.
    pub verbs: Vec<String>,
    /// The group and version objects are stored in; versions of one resource share it.
    pub storage: GroupVersion,
    /// Its subresources, by name.
    pub subresources: Vec<Subresource>,
    /// The version that discovery hashes, where it is not the one objects are stored in.
    pub hashed_version: Option<String>,
    /// The schema of a custom resource; built-in ones are found by kind.
    pub custom: Option<KindSchema>,
    /// Found when the schema of a built-in kind is first asked for; leave it empty.
    pub built_in: OnceLock<Option<KindSchema>>,
}

/// A subresource.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Its name: `status`, `scale`, `log`.
    pub name: String,
    /// The kind it speaks, with that kind's own group and version.
    pub kind: Gvk,
    /// Its verbs.
    pub verbs: Vec<String>,
}

impl Resource {
    /// The kind of its objects.
    pub fn gvk(&self) -> Gvk {
        Gvk::new(&*self.group, &*self.version, &*self.kind)
    }

    /// Group, version and plural.
    pub fn gvr(&self) -> Gvr {
        Gvr::new(&*self.group, &*self.version, &*self.plural)
    }

    /// Group and plural.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&*self.group, &*self.plural)
    }

    /// Group and version.
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion::new(&*self.group, &*self.version)
    }

    /// The kind objects are stored as.
    pub fn storage_kind(&self) -> Gvk {
        self.storage.kind(&*self.kind)
    }

    /// Whether the server keeps objects of it (reviews and bindings are only answered).
    pub fn is_stored(&self) -> bool {
        self.has_verb("watch")
    }

    /// Whether it has that verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// The schema of its objects; `None` for a kind that has none (protocol options).
    pub fn schema(&self) -> Option<&KindSchema> {
        if self.custom.is_some() {
            return self.custom.as_ref();
        }
        self.built_in.get_or_init(|| KindSchema::built_in(&self.gvk())).as_ref()
    }

    /// Whether a definition made it.
    pub fn is_custom(&self) -> bool {
        self.custom.is_some()
    }
}

/// A snapshot of everything served.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// By group in discovery's order, then version in order of preference, then plural.
    groups: Vec<Group>,
    by_resource: HashMap<Gvr, Arc<Resource>>,
    by_kind: HashMap<Gvk, Arc<Resource>>,
}

/// A served group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its name, empty for core.
    pub name: String,
    /// Its versions, the preferred one first.
    pub versions: Vec<GroupVersionResources>,
}

/// A version of a group with its resources, ordered by plural.
#[derive(Clone, Debug, Default)]
pub struct GroupVersionResources {
    /// The version.
    pub version: String,
    /// The resources.
    pub resources: Vec<Arc<Resource>>,
}

impl Registry {
    /// What is served before anything is defined.
    pub fn built_in() -> Self {
        Self::of(builtin::resources())
    }

    /// From a set of resources; later ones replace earlier ones of the same name.
    pub fn of(resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut registry = Self::default();
        for resource in resources {
            registry.by_kind.insert(resource.gvk(), resource.clone());
            registry.by_resource.insert(resource.gvr(), resource);
        }
        let mut sorted: Vec<Arc<Resource>> = registry.by_resource.values().cloned().collect();
        sorted.sort_by(|a, b| {
            let rank = |r: &Resource| builtin::group_rank(&r.group);
            let groups = rank(a).cmp(&rank(b)).then_with(|| a.group.cmp(&b.group));
            groups
                .then_with(|| compare_versions(&a.version, &b.version))
                .then_with(|| a.plural.cmp(&b.plural))
        });
        for resource in sorted {
            registry.append(resource);
        }
        registry
    }

    /// Appends to the last group and version, or to a new one.
    fn append(&mut self, resource: Arc<Resource>) {
        if self.groups.last().is_none_or(|group| group.name != resource.group) {
            self.groups.push(Group { name: resource.group.clone(), versions: Vec::new() });
        }
        let Some(group) = self.groups.last_mut() else { return };
        if group.versions.last().is_none_or(|version| version.version != resource.version) {
            group
                .versions
                .push(GroupVersionResources { version: resource.version.clone(), resources: Vec::new() });
        }
        if let Some(version) = group.versions.last_mut() {
            version.resources.push(resource);
        }
    }

    /// With more resources; ones of the same group, version and plural are replaced.
    #[must_use]
    pub fn with(&self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        Self::of(self.all().cloned().chain(resources))
    }

    /// Without the resources that match.
    #[must_use]
    pub fn without(&self, remove: impl Fn(&Resource) -> bool) -> Self {
        Self::of(self.all().filter(|resource| !remove(resource)).cloned())
    }

    /// Every resource, in discovery's order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.iter().flat_map(|group| &group.versions).flat_map(|version| &version.resources)
    }

    /// The groups, in discovery's order; core is first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// A group by name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// A version of a group.
    pub fn group_version(&self, group: &str, version: &str) -> Option<&GroupVersionResources> {
        self.group(group)?.versions.iter().find(|v| v.version == version)
    }

    /// By group, version and plural.
    pub fn resource(&self, gvr: &Gvr) -> Option<&Arc<Resource>> {
        self.by_resource.get(gvr)
    }

    /// By kind.
    pub fn kind(&self, gvk: &Gvk) -> Option<&Arc<Resource>> {
        self.by_kind.get(gvk)
    }

    /// The preferred version of a resource.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        let versions = &self.group(group)?.versions;
        versions.iter().find_map(|v| v.resources.iter().find(|r| r.plural == plural))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_resources() {
        let registry = Registry::built_in();
        let pods = registry.resource(&Gvr::new("", "v1", "pods")).unwrap();
        assert_eq!((&*pods.kind, &*pods.list_kind, pods.namespaced), ("Pod", "PodList", true));
        assert_eq!(pods.subresource("eviction").unwrap().kind, Gvk::new("policy", "v1", "Eviction"));
        assert!(pods.is_stored() && pods.schema().unwrap().is_built_in());
        let deployment = registry.kind(&Gvk::new("apps", "v1", "Deployment")).unwrap();
        assert_eq!(deployment.subresource("scale").unwrap().kind, Gvk::new("autoscaling", "v1", "Scale"));
        assert_eq!(registry.preferred("autoscaling", "horizontalpodautoscalers").unwrap().version, "v2");
        for resource in registry.all() {
            assert!(resource.schema().is_some(), "{:?} has no schema", resource.gvk());
        }
    }

    #[test]
    fn versions_share_storage() {
        let registry = Registry::built_in();
        let storage = |gvr: Gvr| registry.resource(&gvr).unwrap().storage_kind();
        assert_eq!(
            storage(Gvr::new("autoscaling", "v1", "horizontalpodautoscalers")),
            storage(Gvr::new("autoscaling", "v2", "horizontalpodautoscalers"))
        );
        assert_eq!(storage(Gvr::new("events.k8s.io", "v1", "events")), Gvk::new("", "v1", "Event"));
    }

    #[test]
    fn rows_come_and_go() {
        let thing = |version: &str| {
            Arc::new(Resource {
                group: "example.com".into(),
                version: version.into(),
                plural: "things".into(),
                kind: "Thing".into(),
                custom: Some(KindSchema::any()),
                ..Resource::default()
            })
        };
        let registry = Registry::built_in().with([thing("v1beta1"), thing("v1"), thing("v2alpha1")]);
        let group = registry.group("example.com").unwrap();
        let versions: Vec<_> = group.versions.iter().map(|v| &*v.version).collect();
        assert_eq!(versions, ["v1", "v1beta1", "v2alpha1"]);
        assert_eq!(registry.groups().last().unwrap().name, "example.com");
        assert!(registry.without(|r| r.group == "example.com").group("example.com").is_none());
    }
}
