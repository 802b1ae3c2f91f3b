//! Which resources are served, as one table: built-in rows and those that custom resource definitions add.
//!
//! A request finds its [`Resource`] by group, version and plural name. The table is immutable and swapped whole
//! when a definition changes.

use std::{collections::HashMap, sync::Arc};

use wasmk_api::{GroupKind, GroupResource, GroupVersion, Gvk, Object, Status};
use wasmk_kinds::Kind;
use wasmk_machinery::{
    protobuf,
    resources::{self, Registry, Subresource},
};

use crate::{
    cache::{Cache, Caches, Entry, Reader},
    crd::{Converter, CustomVersion},
    http::RequestInfo,
    server::Core,
    special,
};

/// Where the behaviour of a kind comes from.
#[derive(Clone)]
pub(crate) enum Nature {
    /// A kind of Kubernetes.
    Builtin(&'static dyn Kind),
    /// A version of a custom resource.
    Custom(Arc<CustomVersion>),
}

/// A resource in one version.
pub(crate) struct Resource {
    /// The kind of its objects, in the version that is served.
    pub(crate) gvk: Gvk,
    /// The plural name.
    pub(crate) plural: String,
    /// Whether objects live in namespaces.
    pub(crate) namespaced: bool,
    /// The kind of its lists.
    pub(crate) list_kind: String,
    /// The group and version objects are stored in.
    pub(crate) stored: GroupVersion,
    /// Its objects.
    pub(crate) cache: Arc<Cache>,
    /// `<group or core>/<plural>` in the store.
    pub(crate) storage: String,
    /// What is particular about it.
    pub(crate) nature: Nature,
    /// The text of the `Warning` every use of it is answered with.
    pub(crate) deprecation: Option<String>,
    /// How its objects are written in protobuf; those of custom resources are not.
    pub(crate) binary: Option<protobuf::Type>,
    api_version: String,
    row: Arc<resources::Resource>,
}

impl Resource {
    fn new(
        caches: &Caches,
        row: &Arc<resources::Resource>,
        nature: Nature,
        deprecation: Option<String>,
    ) -> Self {
        let storage = storage(&row.storage.group, &row.plural);
        let binary = match nature {
            Nature::Builtin(_) => protobuf::Type::of(&row.gvk()),
            Nature::Custom(_) => None,
        };
        Self {
            gvk: row.gvk(),
            binary,
            api_version: row.gvk().api_version(),
            plural: row.plural.clone(),
            namespaced: row.namespaced,
            list_kind: row.list_kind.clone(),
            stored: row.storage.clone(),
            cache: caches.of(&storage),
            storage,
            nature,
            deprecation,
            row: row.clone(),
        }
    }

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
        // Of exactly its length: the store keeps it.
        [crate::cache::ROOT, &self.storage, "/", &crate::cache::key(namespace, name)].concat()
    }

    /// Whether it has that verb.
    pub(crate) fn has_verb(&self, verb: &str) -> bool {
        self.row.has_verb(verb)
    }

    /// A subresource.
    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.row.subresource(name)
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

    /// Whether an object is stored just as it is served here.
    pub(crate) fn serves(&self, entry: &Entry) -> bool {
        // Custom resources stored before their definition changed are read through its present schema.
        let fresh = self.custom().is_none_or(|version| entry.revision > version.since);
        fresh && entry.is_version(&self.api_version)
    }

    /// An object of the cache in the version that is served.
    pub(crate) fn shown(&self, entry: &Entry) -> Object {
        if self.serves(entry) { entry.object() } else { self.served(entry.object()) }
    }

    /// A stored object in the version that is served.
    pub(crate) fn served(&self, object: Object) -> Object {
        let object = self.in_version(object, &self.gvk);
        match &self.nature {
            Nature::Builtin(_) => object,
            Nature::Custom(version) => version.read_stored(object),
        }
    }

    /// Whether an object is stored just as it is.
    pub(crate) fn stores(&self, object: &Object) -> bool {
        (&self.stored.group, &self.stored.version) == (&self.gvk.group, &self.gvk.version)
            && object.kind() == self.gvk.kind
            && object.api_version() == self.api_version
    }

    /// Whether what is stored can show less here than what was written.
    pub(crate) fn is_lossy(&self) -> bool {
        self.custom().is_some() && !self.converts() && self.stored != self.gvk.group_version()
    }

    /// An object of a built-in kind as it is after it was stored in another version: with the defaults of that.
    pub(crate) fn round_trip(&self, object: Object) -> Object {
        let same = self.stored == self.gvk.group_version() || matches!(self.nature, Nature::Custom(_));
        if same { object } else { self.served(self.stored(object)) }
    }

    /// A served object in the version that is stored.
    pub(crate) fn stored(&self, object: Object) -> Object {
        let object = match &self.nature {
            Nature::Builtin(_) => object,
            Nature::Custom(version) => version.to_stored(object),
        };
        self.in_version(object, &self.stored.kind(self.gvk.kind.clone()))
    }

    /// The webhook that converts its objects between versions.
    fn converter(&self) -> Option<&Arc<Converter>> {
        self.custom().and_then(|version| version.converter.as_ref())
    }

    /// Whether its objects need a webhook to be seen in another version than they are stored in.
    pub(crate) fn converts(&self) -> bool {
        self.converter().is_some()
    }

    /// Stored objects in the version that is served, as far as it takes a webhook; [`Resource::served`] does the
    /// rest.
    ///
    /// # Errors
    /// When the webhook fails.
    pub(crate) async fn present(
        &self,
        core: &Core,
        entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        match self.converter() {
            None => Ok(entries),
            Some(converter) => converter.entries(core, entries, &self.gvk).await,
        }
    }

    /// The same for one object.
    ///
    /// # Errors
    /// When the webhook fails.
    pub(crate) async fn present_one(&self, core: &Core, entry: Arc<Entry>) -> Result<Arc<Entry>, Status> {
        if !self.converts() {
            return Ok(entry);
        }
        let mut all = self.present(core, vec![entry]).await?;
        all.pop().ok_or_else(|| Status::internal("a converted object is missing"))
    }

    /// A served object in the version that is stored, by the webhook if there is one.
    ///
    /// # Errors
    /// When the webhook fails.
    pub(crate) async fn to_stored(&self, core: &Core, object: Object) -> Result<Object, Status> {
        let wanted = self.stored.kind(self.gvk.kind.clone());
        match self.converter() {
            Some(converter) if wanted != self.gvk => one(converter, core, object, &wanted).await,
            _ => Ok(self.stored(object)),
        }
    }

    /// An object of this version in another version of the same resource.
    ///
    /// # Errors
    /// When a conversion webhook is needed and fails.
    pub(crate) async fn convert(&self, core: &Core, object: Object, to: &Self) -> Result<Object, Status> {
        if matches!(self.nature, Nature::Builtin(_)) {
            return Ok(to.served(self.stored(object)));
        }
        match self.converter() {
            Some(converter) if self.gvk != to.gvk => one(converter, core, object, &to.gvk).await,
            _ => {
                let mut object = object;
                object.set_gvk(&to.gvk);
                Ok(object)
            }
        }
    }

    /// Group and kind as validation names them: events are events of the core group everywhere.
    pub(crate) fn invalid_kind(&self) -> GroupKind {
        GroupKind { group: self.stored.group.clone(), kind: self.gvk.kind.clone() }
    }

    fn in_version(&self, mut object: Object, gvk: &Gvk) -> Object {
        match &self.nature {
            Nature::Builtin(kind) => {
                if object.gvk().as_ref() != Some(gvk) {
                    resources::convert::convert(&mut object, gvk);
                    kind.default(&mut object);
                }
            }
            Nature::Custom(_) => object.set_gvk(gvk),
        }
        object
    }
}

async fn one(converter: &Converter, core: &Core, object: Object, to: &Gvk) -> Result<Object, Status> {
    let mut all = converter.objects(core, vec![object], to).await?;
    all.pop().ok_or_else(|| Status::internal("a converted object is missing"))
}

/// A row that a definition adds.
#[derive(Clone)]
pub(crate) struct Addition {
    pub(crate) row: Arc<resources::Resource>,
    pub(crate) version: Arc<CustomVersion>,
    pub(crate) deprecation: Option<String>,
}

/// All resources.
pub(crate) struct Table {
    /// What discovery shows.
    pub(crate) registry: Registry,
    /// By plural name: the few resources that share one, in all groups and versions.
    rows: HashMap<String, Vec<Arc<Resource>>>,
}

impl Table {
    /// The built-in resources with those that definitions add. A definition cannot replace a built-in resource.
    ///
    /// `remote` are the rows of what other servers have; they are only listed.
    pub(crate) fn new(
        caches: &Caches,
        additions: Vec<Addition>,
        remote: Vec<Arc<resources::Resource>>,
    ) -> Self {
        let builtin = Registry::built_in();
        let mut rows: HashMap<String, Vec<Arc<Resource>>> = HashMap::new();
        let mut add =
            |resource: Resource| rows.entry(resource.plural.clone()).or_default().push(resource.into());
        for row in builtin.all() {
            let nature = Nature::Builtin(wasmk_kinds::kind(&row.group, &row.kind));
            let deprecation = special::deprecation(&row.group, &row.version, &row.plural).map(Into::into);
            add(Resource::new(caches, row, nature, deprecation));
        }
        let mut custom = Vec::new();
        for addition in additions {
            let row = addition.row;
            if builtin.resource(&row.gvr()).is_some() {
                continue;
            }
            let nature = Nature::Custom(addition.version);
            add(Resource::new(caches, &row, nature, addition.deprecation));
            custom.push(row);
        }
        let mut table = Self { registry: builtin, rows };
        custom.extend(remote.into_iter().filter(|row| !table.has(row)));
        if !custom.is_empty() {
            table.registry = table.registry.with(custom);
        }
        table
    }

    /// A resource.
    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.rows.get(plural)?.iter().find(|r| r.gvk.version == version && r.gvk.group == group)
    }

    fn of_row(&self, row: &resources::Resource) -> Option<&Arc<Resource>> {
        self.get(&row.group, &row.version, &row.plural)
    }

    /// Whether what a request is about is served, by this server or another.
    pub(crate) fn knows(&self, info: &RequestInfo) -> bool {
        let remote = || {
            let version = self.registry.group_version(&info.group, &info.version)?;
            version.resources.iter().find(|row| row.plural == info.resource)
        };
        let own = self.get(&info.group, &info.version, &info.resource).map(|resource| &resource.row);
        let sub = &*info.subresource;
        own.or_else(remote).is_some_and(|row| sub.is_empty() || row.subresource(sub).is_some())
    }

    /// Whether anything is served in that group and version.
    pub(crate) fn has_version(&self, group: &str, version: &str) -> bool {
        self.registry.group_version(group, version).is_some()
    }

    /// Whether a row of the registry is this server's own.
    pub(crate) fn has(&self, row: &resources::Resource) -> bool {
        self.of_row(row).is_some()
    }

    /// The resource of a kind.
    pub(crate) fn by_kind(&self, gvk: &Gvk) -> Option<&Arc<Resource>> {
        self.of_row(self.registry.kind(gvk)?)
    }

    /// The preferred version of a resource.
    pub(crate) fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.of_row(self.registry.preferred(group, plural)?)
    }

    /// All rows.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.registry.all().filter_map(|row| self.of_row(row))
    }
}

/// The key of a resource's cache and of its objects in the store.
fn storage(group: &str, plural: &str) -> String {
    format!("{}/{plural}", if group.is_empty() { "core" } else { group })
}

/// How objects of each stored resource are read into the cache.
pub(crate) fn readers() -> impl Fn(&str) -> Reader + Send + Sync + 'static {
    let builtin = Registry::built_in();
    let rows = builtin.all().filter(|row| row.storage == row.group_version());
    let known: HashMap<String, &'static dyn Kind> = rows
        .map(|row| (storage(&row.group, &row.plural), wasmk_kinds::kind(&row.group, &row.kind)))
        .collect();
    move |name| known.get(name).map_or(Reader::Plain, |kind| Reader::Kind(*kind))
}
