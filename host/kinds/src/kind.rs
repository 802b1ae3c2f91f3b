//! The behaviour of one kind, as the API server asks for it.

use serde_json::Value;
use wasmk_api::{Cause, Object, Timestamp};

use crate::errors::Errors;
use crate::meta::NameRule;
use crate::{columns, fields, meta, normalize, status};

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
/// Objects are whole, decoded and of the right kind; a field of the wrong JSON type reads as absent. On create
/// the server has set name, namespace and uid before it prepares and validates.
pub trait Kind: Sync {
    /// Brings a decoded object into the form it is stored in: empty optional values are dropped, values that
    /// are always written are added, and the defaults of the kind's version are set.
    fn default(&self, obj: &mut Object) {
        normalize::normalize(obj);
        self.set_defaults(obj);
    }

    /// The part of [`Kind::default`] that is particular to the kind.
    fn set_defaults(&self, _obj: &mut Object) {}

    /// Before an object is created: drops what only the system may set, for instance the status.
    fn prepare_create(&self, obj: &mut Object) {
        status::reset(obj);
    }

    /// Before an object is replaced through its main resource: keeps what only the system may change.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        status::keep(new, old);
    }

    /// Before an object is replaced through its status subresource: keeps everything but the status.
    fn prepare_status(&self, new: &mut Object, old: &Object) {
        status::only(new, old);
    }

    /// What is wrong with a new object, its metadata included; empty when it is valid.
    fn validate(&self, obj: &Object) -> Vec<Cause> {
        let mut errors = Errors::default();
        meta::check(obj, self.name_rule(), &mut errors);
        meta::check_finalizers(obj, &mut errors);
        self.check(obj, &mut errors);
        errors.done()
    }

    /// What is wrong with replacing `old` by `new`, including all that is wrong with `new` alone.
    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut errors = Errors::default();
        meta::check_update_twice(new, old, &mut errors);
        self.check_update(new, old, &mut errors);
        errors.done()
    }

    /// What is wrong with replacing the status of `old` by that of `new`.
    fn validate_status(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut errors = Errors::default();
        meta::check_update_twice(new, old, &mut errors);
        self.check_status(new, old, &mut errors);
        errors.done()
    }

    /// What is wrong with a change made through a subresource that has rules of its own, for instance
    /// `ephemeralcontainers`; what may change there at all is the subresource's matter.
    fn validate_part(&self, _subresource: &str, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// The part of [`Kind::validate`] that is particular to the kind.
    fn check(&self, _obj: &Object, _errors: &mut Errors) {}

    /// The part of [`Kind::validate_update`] that is particular to the kind.
    fn check_update(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        self.check(new, errors);
    }

    /// The part of [`Kind::validate_status`] that is particular to the kind.
    fn check_status(&self, _new: &Object, _old: &Object, _errors: &mut Errors) {}

    /// What names objects of this kind may have.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// Texts for `Warning` headers of a create (`old` absent) or update.
    fn warnings(&self, _obj: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }

    /// The columns of the kind's table.
    fn columns(&self) -> &'static [Column] {
        columns::DEFAULT
    }

    /// The cells of one object, one per column.
    fn row(&self, obj: &Object, _now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), obj.meta("creationTimestamp").into()]
    }

    /// The `conditions` of the object's table row; empty for most.
    fn row_conditions(&self, _obj: &Object) -> Vec<Value> {
        Vec::new()
    }

    /// The names of [`Kind::fields`].
    fn field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// The fields a field selector may name beyond `metadata.name` and `metadata.namespace`, with the
    /// object's values.
    fn fields(&self, obj: &Object) -> Vec<(&'static str, String)> {
        self.field_names().iter().map(|name| (*name, fields::value(obj, name))).collect()
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
