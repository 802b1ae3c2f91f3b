//! Which resources are served, as one table: built-in rows and those that custom resource definitions add.
//!
//! A request finds its [`Resource`] by group, version and plural name. The table is immutable and swapped whole
//! when a definition changes.

use std::{collections::HashMap, sync::Arc};

use wasmk_api::{GroupKind, GroupResource, GroupVersion, Gvk};
use wasmk_kinds::Kind;

use crate::{cache::Cache, crd::CustomVersion};

/// A subresource of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subresource {
    /// Its name, for instance `status`.
    pub(crate) name: String,
    /// The kind of its bodies.
    pub(crate) gvk: Gvk,
    /// Its verbs.
    pub(crate) verbs: Vec<String>,
}

/// Where the behaviour of a kind comes from.
#[derive(Clone)]
pub(crate) enum Nature {
    /// A kind of Kubernetes.
    Builtin(&'static dyn Kind),
    /// A version of a custom resource.
    Custom(Arc<CustomVersion>),
}

/// A resource in one version.
#[derive(Clone)]
pub(crate) struct Resource {
    /// The kind of its objects, in the version that is served.
    pub(crate) gvk: Gvk,
    /// The plural name.
    pub(crate) plural: String,
    /// The name of one, in lower case.
    pub(crate) singular: String,
    /// Abbreviations.
    pub(crate) short_names: Vec<String>,
    /// Groups of resources it belongs to, for instance `all`.
    pub(crate) categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub(crate) namespaced: bool,
    /// Its verbs.
    pub(crate) verbs: Vec<String>,
    /// Its subresources.
    pub(crate) subresources: Vec<Subresource>,
    /// Whether it has more than subresources: `false` for the bare owner of some.
    pub(crate) list_kind: String,
    /// The version objects are stored in.
    pub(crate) stored: GroupVersion,
    /// The group under which objects are stored; differs from that of the kind for events.
    pub(crate) cache: Arc<Cache>,
    /// `<group or core>/<plural>` in the store.
    pub(crate) storage: String,
    /// What is particular about it.
    pub(crate) nature: Nature,
    /// The text of the `Warning` every use of it is answered with.
    pub(crate) deprecation: Option<String>,
}

impl Resource {
    /// Group and plural name.
    pub(crate) fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.gvk.group.clone(), self.plural.clone())
    }

    /// Group and kind.
    pub(crate) fn group_kind(&self) -> GroupKind {
        self.gvk.group_kind()
    }

    /// The key of an object in the store.
    pub(crate) fn store_key(&self, namespace: &str, name: &str) -> String {
        format!("{}{}/{}", crate::cache::ROOT, self.storage, crate::cache::key(namespace, name))
    }

    /// A subresource.
    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The custom resource's version, if it is one.
    pub(crate) fn custom(&self) -> Option<&Arc<CustomVersion>> {
        match &self.nature {
            Nature::Custom(version) => Some(version),
            Nature::Builtin(_) => None,
        }
    }

    /// The behaviour of its kind; a neutral one for custom resources.
    pub(crate) fn kind(&self) -> &'static dyn Kind {
        match &self.nature {
            Nature::Builtin(kind) => *kind,
            Nature::Custom(_) => wasmk_kinds::kind("", ""),
        }
    }

    /// Whether objects are served in the version they are stored in.
    pub(crate) fn is_stored_version(&self) -> bool {
        self.stored.version == self.gvk.version && self.stored.group == self.gvk.group
    }
}

/// All resources, by group, version and plural name.
#[derive(Clone, Default)]
pub(crate) struct Table {
    rows: HashMap<(String, String), HashMap<String, Arc<Resource>>>,
    /// In the order of discovery.
    order: Vec<(GroupVersion, Vec<Arc<Resource>>)>,
}

impl Table {
    /// Adds a row, after those of its group and version.
    pub(crate) fn add(&mut self, resource: Resource) {
        let gv = resource.gvk.group_version();
        let resource = Arc::new(resource);
        let key = (gv.group.clone(), gv.version.clone());
        self.rows.entry(key).or_default().insert(resource.plural.clone(), resource.clone());
        match self.order.iter_mut().find(|(known, _)| *known == gv) {
            Some((_, rows)) => rows.push(resource),
            None => self.order.push((gv, vec![resource])),
        }
    }

    /// A resource.
    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.rows.get(&(group.to_owned(), version.to_owned()))?.get(plural)
    }

    /// Whether anything is served in that group and version.
    pub(crate) fn has_version(&self, group: &str, version: &str) -> bool {
        self.rows.contains_key(&(group.to_owned(), version.to_owned()))
    }

    /// The resource of a kind.
    pub(crate) fn by_kind(&self, gvk: &Gvk) -> Option<&Arc<Resource>> {
        let rows = self.rows.get(&(gvk.group.clone(), gvk.version.clone()))?;
        rows.values().find(|r| r.gvk.kind == gvk.kind)
    }

    /// Any version of a group's resource.
    pub(crate) fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.all().find(|r| r.gvk.group == group && r.plural == plural)
    }

    /// All groups and versions with their rows, in the order of discovery.
    pub(crate) fn versions(&self) -> &[(GroupVersion, Vec<Arc<Resource>>)] {
        &self.order
    }

    /// All rows.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.order.iter().flat_map(|(_, rows)| rows)
    }
}
