//! Keeps `metadata.managedFields` right while objects are written, and applies configurations.

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::Value;
use wasmk_api::{Gvk, Timestamp};

use super::{
    ApplyError, Comparison, Conflict, Element, ManagerId, Operation, Reset, Set,
    compare::compare,
    last_applied,
    leaves::{is_reconciled, leaves, reconcile},
    managed::{self, BEFORE_FIRST_APPLY, Entry, Managers},
    merge::merge,
    prune::equal_but_owners,
    typed::Type,
    validate::validate,
    zero::zero,
};
use crate::schema::KindSchema;

/// Fields nobody owns.
static UNOWNED: LazyLock<Set> = LazyLock::new(|| {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let mut set = Set::of(&[&["apiVersion"], &["kind"], &["metadata"]]);
    for field in metadata {
        set.insert(&[Element::field("metadata"), Element::field(field)]);
    }
    set
});

/// Reads objects in other versions of their group, for managers that wrote in those.
pub trait Versions: Send + Sync {
    /// The object in that version with its schema; `None` when the version is not served.
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, KindSchema)>;
}

/// Tracks who owns which fields in writes to one resource or subresource.
#[derive(Clone, Copy)]
pub struct FieldManager<'a> {
    /// The kind in the version of the request.
    pub gvk: &'a Gvk,
    /// Its schema.
    pub kind: &'a KindSchema,
    /// The subresource, empty for the resource itself.
    pub subresource: &'a str,
    /// What writes to it leave alone.
    pub reset: &'a Reset,
    /// Other versions; without, all versions are taken for the same as this one.
    pub versions: Option<&'a dyn Versions>,
    /// When the write happens.
    pub now: Timestamp,
}

/// What a write did, in the terms of one version.
struct Change {
    /// Fields that came or changed.
    gained: Set,
    /// The same and those that went: what other managers no longer own.
    lost: Set,
}

/// The change in every version that managers wrote in; nothing for versions not served.
type Changes = BTreeMap<String, Option<Change>>;

impl From<Comparison> for Change {
    fn from(comparison: Comparison) -> Self {
        let gained = comparison.modified.union(&comparison.added);
        Self { lost: gained.union(&comparison.removed), gained }
    }
}

impl FieldManager<'_> {
    /// Fills in `metadata.managedFields` of an object about to be written by a request other than apply.
    ///
    /// `live` is the object as stored, `None` on create; `new` holds the `managedFields` of the request,
    /// if any: an empty list, or one empty entry, stops tracking. When anything about the owners cannot
    /// be understood the live object's entries are kept.
    pub fn update(&self, live: Option<&Value>, new: &mut Value, manager: &str) {
        let managers = self.before(live, new);
        if managers.is_empty() && live.is_some() {
            return managed::put(new, Vec::new());
        }
        let empty;
        let old = match live {
            Some(live) => live,
            None => {
                empty = zero(self.kind, self.gvk);
                &empty
            }
        };
        match self.updated(old, new, managers, manager) {
            Ok(managers) => managed::store(new, &managers),
            Err(_) => {
                let entries = live.and_then(managed::entries_of).cloned().unwrap_or_default();
                managed::put(new, entries);
            }
        }
    }

    /// Whose entries count: the request's when it has any, otherwise the live object's.
    fn before(&self, live: Option<&Value>, new: &Value) -> Managers {
        let of_live = || {
            let entries = live.and_then(managed::entries_of);
            entries.and_then(|entries| managed::decode(entries).ok()).unwrap_or_default()
        };
        let Some(entries) = managed::entries_of(new).filter(|_| self.subresource.is_empty()) else {
            return of_live();
        };
        if managed::is_reset(entries) {
            return Managers::new();
        }
        match managed::decode(entries) {
            Ok(managers) if !managers.is_empty() => managers,
            _ => of_live(),
        }
    }

    fn updated(&self, old: &Value, new: &Value, managers: Managers, name: &str) -> Result<Managers, String> {
        let mut managers = self.reconciled(old, managers);
        let change = Change::from(self.reset.filter_all(compare(self.root(), old, new)?));
        let gained = change.gained.clone();
        let mut changes = Changes::from([(self.api_version(), Some(change))]);
        for (id, entry) in std::mem::take(&mut managers) {
            let Some(change) = self.versioned(&mut changes, old, new, &entry.api_version)? else { continue };
            let set = entry.set.difference(&change.lost);
            if !set.is_empty() {
                managers.insert(id, Entry { set, ..entry });
            }
        }
        let own = self.reset.filter(&gained).difference(&UNOWNED);
        if !own.is_empty() {
            let id = self.id(name, Operation::Update);
            let set = match managers.remove(&id) {
                Some(before) => before.set.union(&own),
                None => own,
            };
            managers.insert(id, Entry { set, api_version: self.api_version(), time: Some(self.now) });
        }
        managed::cap(&mut managers);
        Ok(managers)
    }

    /// Applies a configuration: returns the object to store, `metadata.managedFields` included.
    ///
    /// `live` is the object as stored, `None` when it is to be created; `applied` is the configuration
    /// as sent. With `force` fields are taken over from other managers.
    ///
    /// # Errors
    /// When the configuration is of another kind, does not fit the schema or sets `managedFields`, and
    /// when others own fields of it with other values and `force` is not given.
    pub fn apply(
        &self,
        live: Option<&Value>,
        applied: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, ApplyError> {
        self.check(applied)?;
        let Some(live) = live else { return self.created(applied, manager) };
        let entries = live.get("metadata").and_then(|m| m.get("managedFields")).and_then(Value::as_array);
        let mut managers = match entries.map(|entries| managed::decode(entries)) {
            Some(Ok(managers)) => managers,
            None => Managers::new(),
            Some(Err(why)) => {
                return Err(ApplyError::Untyped(format!("failed to decode managed fields: {why}")));
            }
        };
        if managers.is_empty() {
            let before = self.updated(&zero(self.kind, self.gvk), live, managers, BEFORE_FIRST_APPLY);
            managers = before.map_err(|why| self.incomparable(&why))?;
        }
        let outcome = self.applied(live, applied, managers.clone(), manager, force);
        let mut object = match outcome {
            Err(ApplyError::Conflicts(conflicts)) if manager == last_applied::KUBECTL => {
                let left = self.unforeseen(live, conflicts);
                if !left.is_empty() {
                    return Err(ApplyError::Conflicts(left));
                }
                self.applied(live, applied, managers, manager, true)?
            }
            outcome => outcome?,
        };
        if manager == last_applied::KUBECTL {
            last_applied::refresh(&mut object, applied);
        }
        Ok(object)
    }

    fn check(&self, applied: &Value) -> Result<(), ApplyError> {
        let text = |key: &str| applied.get(key).and_then(Value::as_str).unwrap_or("");
        if text("apiVersion") != self.api_version() || text("kind") != self.gvk.kind {
            return Err(ApplyError::BadRequest(format!(
                "invalid object type: {}",
                shown_kind(text("apiVersion"), text("kind"))
            )));
        }
        if managed::entries_of(applied).is_some_and(|entries| !entries.is_empty()) {
            return Err(ApplyError::BadRequest("metadata.managedFields must be nil".into()));
        }
        match validate(self.root(), applied) {
            None => Ok(()),
            Some(faults) => Err(self.untyped("failed to create typed patch object", applied, &faults)),
        }
    }

    fn untyped(&self, what: &str, object: &Value, faults: &str) -> ApplyError {
        let meta =
            |key: &str| object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("");
        let (namespace, name) = (meta("namespace"), meta("name"));
        let kind = shown_kind(&self.api_version(), &self.gvk.kind);
        ApplyError::Untyped(format!("{what} ({namespace}/{name}; {kind}): {faults}"))
    }

    fn incomparable(&self, why: &str) -> ApplyError {
        ApplyError::Untyped(format!("failed to compare objects: {why}"))
    }

    /// An object that is created is its configuration.
    fn created(&self, applied: &Value, manager: &str) -> Result<Value, ApplyError> {
        let set = self.reset.filter(&leaves(self.root(), applied)).difference(&UNOWNED);
        let mut managers = Managers::new();
        if !set.is_empty() {
            let entry = Entry { set, api_version: self.api_version(), time: Some(self.now) };
            managers.insert(self.id(manager, Operation::Apply), entry);
        }
        let mut object = applied.clone();
        managed::store(&mut object, &managers);
        if manager == last_applied::KUBECTL {
            last_applied::refresh(&mut object, applied);
        }
        Ok(object)
    }

    fn applied(
        &self,
        live: &Value,
        config: &Value,
        managers: Managers,
        name: &str,
        force: bool,
    ) -> Result<Value, ApplyError> {
        let mut managers = self.reconciled(live, managers);
        let mut object = merge(self.root(), live, config)
            .map_err(|why| ApplyError::Untyped(format!("failed to merge config: {why}")))?;
        let set = self.reset.filter(&leaves(self.root(), config));
        let id = self.id(name, Operation::Apply);
        let entry = Entry { set, api_version: self.api_version(), time: None };
        let last = managers.insert(id.clone(), entry);
        let time = last.as_ref().and_then(|last| last.time);
        if let Some(last) = last {
            object = self.pruned(object, &managers, &id, &last);
        }
        let others = self.against_others(live, &object, managers, &id, force)?;
        managers = others;
        let changed = !equal_but_owners(live, &object);
        if let Some(mut entry) = managers.remove(&id) {
            entry.set = entry.set.difference(&UNOWNED);
            entry.time = if changed { Some(self.now) } else { time };
            if !entry.set.is_empty() {
                managers.insert(id, entry);
            }
        }
        managed::store(&mut object, &managers);
        Ok(object)
    }

    /// Takes from the other managers what changed, or says which of it they own.
    fn against_others(
        &self,
        live: &Value,
        object: &Value,
        managers: Managers,
        own: &ManagerId,
        force: bool,
    ) -> Result<Managers, ApplyError> {
        let mut changes = Changes::new();
        let mut conflicts = Vec::new();
        let mut left = Managers::new();
        for (id, mut entry) in managers {
            if id != *own {
                let found = self.versioned(&mut changes, live, object, &entry.api_version);
                let Some(change) = found.map_err(|why| self.incomparable(&why))? else { continue };
                entry.set.intersection(&change.gained).each(&mut |path| {
                    conflicts.push(Conflict { manager: id.clone(), path: path.to_vec() });
                });
                entry.set = entry.set.difference(&change.lost);
            }
            if !entry.set.is_empty() {
                left.insert(id, entry);
            }
        }
        if conflicts.is_empty() || force { Ok(left) } else { Err(ApplyError::Conflicts(conflicts)) }
    }

    /// The conflicts that the last configuration applied by a client does not explain.
    fn unforeseen(&self, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
        let Some(config) = last_applied::read(live, &self.api_version()) else { return conflicts };
        let Ok(comparison) = compare(self.root(), &config, live) else { return conflicts };
        if validate(self.root(), &config).is_some() {
            return conflicts;
        }
        let unchanged = leaves(self.root(), &config)
            .difference(&comparison.modified)
            .difference(&comparison.added)
            .difference(&comparison.removed);
        conflicts.into_iter().filter(|conflict| !unchanged.has(&conflict.path)).collect()
    }

    fn reconciled(&self, live: &Value, managers: Managers) -> Managers {
        let mut schemas: BTreeMap<String, Option<KindSchema>> = BTreeMap::new();
        let mut schema = |version: &str| {
            if version == self.api_version() || self.versions.is_none() {
                return Some(self.kind.clone());
            }
            let convert = || Some(self.versions?.convert(live, version)?.1);
            schemas.entry(version.into()).or_insert_with(convert).clone()
        };
        let fix = |(id, entry): (ManagerId, Entry)| {
            let kind = schema(&entry.api_version)?;
            let ty = Type::root(kind.schema());
            if is_reconciled(ty, &entry.set) {
                return Some((id, entry));
            }
            Some((id, Entry { set: reconcile(ty, &entry.set), ..entry }))
        };
        managers.into_iter().filter_map(fix).collect()
    }

    /// The change in a manager's version; `None` when that is not served.
    fn versioned<'c>(
        &self,
        changes: &'c mut Changes,
        old: &Value,
        new: &Value,
        version: &str,
    ) -> Result<Option<&'c Change>, String> {
        let here = self.api_version();
        let key = if self.versions.is_none() { &*here } else { version };
        if !changes.contains_key(key) {
            let comparison = match self.versions.filter(|_| *key != here) {
                None => Some(compare(self.root(), old, new)?),
                Some(other) => match (other.convert(old, key), other.convert(new, key)) {
                    (Some((old, kind)), Some((new, _))) => {
                        Some(compare(Type::root(kind.schema()), &old, &new)?)
                    }
                    _ => None,
                },
            };
            changes.insert(key.into(), comparison.map(|comparison| self.reset.filter_all(comparison).into()));
        }
        Ok(changes.get(key).and_then(Option::as_ref))
    }

    pub(super) fn root(&self) -> Type<'_> {
        Type::root(self.kind.schema())
    }

    pub(super) fn api_version(&self) -> String {
        self.gvk.api_version()
    }

    fn id(&self, name: &str, operation: Operation) -> ManagerId {
        ManagerId::new(name, operation, &self.api_version(), self.subresource)
    }
}

/// `apps/v1, Kind=Deployment`; the core group is empty: `/v1, Kind=Pod`.
fn shown_kind(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}
