//! The behaviour of one kind, as the API server asks for it.

use serde_json::Value;
use wasmk_api::{Cause, Object, Timestamp};

/// A column of a kind's table, as `kubectl get` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// The type of its cells: `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the column that names the object, else empty.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0 is always shown, 1 only in wide output.
    pub priority: i32,
}

/// Where a kind's scale subresource finds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The path of the wanted number of replicas.
    pub spec_replicas: &'static [&'static str],
    /// The path of the number of replicas there are.
    pub status_replicas: &'static [&'static str],
    /// Where the selector of the replicas is.
    pub selector: ScaleSelector,
}

/// The form a scalable kind keeps its selector in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleSelector {
    /// A `LabelSelector` object at this path.
    LabelSelector(&'static [&'static str]),
    /// A map of labels at this path.
    Map(&'static [&'static str]),
}

/// What data cannot say about one kind. Every method has a neutral default.
///
/// Objects are whole, decoded and of the right kind; a field of the wrong JSON type reads as absent.
pub trait Kind: Sync {
    /// Brings a decoded object into the form it is stored in: empty optional values are dropped, values that
    /// are always written are added, and the defaults of the kind's version are set.
    fn default(&self, obj: &mut Object) {
        self.set_defaults(obj);
    }

    /// The part of [`Kind::default`] that is particular to the kind.
    fn set_defaults(&self, _obj: &mut Object) {}

    /// Before an object is created: drops what only the system may set, for instance the status.
    fn prepare_create(&self, _obj: &mut Object) {}

    /// Before an object is replaced through its main resource: keeps what only the system may change.
    fn prepare_update(&self, _new: &mut Object, _old: &Object) {}

    /// Before an object is replaced through its status subresource: keeps everything but the status.
    fn prepare_status(&self, _new: &mut Object, _old: &Object) {}

    /// What is wrong with a new object, its metadata included; empty when it is valid.
    fn validate(&self, _obj: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// What is wrong with replacing `old` by `new`, including all that is wrong with `new` alone.
    fn validate_update(&self, new: &Object, _old: &Object) -> Vec<Cause> {
        self.validate(new)
    }

    /// What is wrong with replacing the status of `old` by that of `new`.
    fn validate_status(&self, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// Texts for `Warning` headers of a create (`old` absent) or update.
    fn warnings(&self, _obj: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }

    /// The columns of the kind's table.
    fn columns(&self) -> &'static [Column] {
        DEFAULT_COLUMNS
    }

    /// The cells of one object, one per column.
    fn row(&self, obj: &Object, _now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), obj.meta("creationTimestamp").into()]
    }

    /// The `conditions` of the object's table row; empty for most.
    fn row_conditions(&self, _obj: &Object) -> Vec<Value> {
        Vec::new()
    }

    /// The fields a field selector may name beyond `metadata.name` and `metadata.namespace`, with the
    /// object's values.
    fn fields(&self, _obj: &Object) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The names of [`Kind::fields`].
    fn field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether objects carry `metadata.generation`.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether the step from `old` to `new` (both defaulted and prepared) counts as a new generation.
    fn spec_changed(&self, new: &Object, old: &Object) -> bool {
        new.0.get("spec") != old.0.get("spec")
    }

    /// The grace period in seconds of a delete that names none; `None` when objects go at once.
    fn default_grace(&self, _obj: &Object) -> Option<i64> {
        None
    }

    /// Where the scale subresource finds its numbers, for kinds that have one.
    fn scale(&self) -> Option<Scale> {
        None
    }

    /// Whether an update without `metadata.resourceVersion` replaces whatever is there.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Whether an update of an object that does not exist creates it.
    fn creates_on_update(&self) -> bool {
        false
    }

    /// The propagation of a delete that names none: `true` orphans dependents.
    fn orphans_by_default(&self) -> bool {
        false
    }
}

/// The columns of kinds that have none of their own.
pub(crate) const DEFAULT_COLUMNS: &[Column] = &[
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
        priority: 0,
    },
    Column {
        name: "Created At",
        kind: "date",
        format: "",
        description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        priority: 0,
    },
];
