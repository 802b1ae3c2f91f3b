//! `ControllerRevision`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_meta, top};
use crate::meta::{IMMUTABLE, NOT_NEGATIVE};
use crate::table::age;
use crate::value::{flag, text};
use crate::{Column, Kind, columns};

pub(crate) struct ControllerRevision;

impl Kind for ControllerRevision {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let data = top(obj, "data");
        if data.is_null() {
            errors.required(&At::new("data"), "data is mandatory");
        } else if !data.is_object() {
            errors.invalid(&At::new("data"), data, "must be an object");
        }
        if let Some(revision) = top(obj, "revision").as_i64().filter(|r| *r < 0) {
            errors.invalid_int(&At::new("revision"), revision, NOT_NEGATIVE);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if top(new, "data") != top(old, "data") {
            errors.invalid(&At::new("data"), top(new, "data"), IMMUTABLE);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("apps/ControllerRevision")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let owner = in_meta(obj, "ownerReferences")
            .as_array()
            .and_then(|owners| owners.iter().find(|o| flag(o, "controller")));
        let controller = owner.map_or_else(
            || "<none>".to_owned(),
            |o| owner_name(text(o, "apiVersion"), text(o, "kind"), text(o, "name")),
        );
        let revision = top(obj, "revision").as_i64().unwrap_or(0);
        vec![obj.name().into(), controller.into(), revision.into(), age(obj, now)]
    }
}

/// `statefulset.apps/web`.
fn owner_name(api_version: &str, kind: &str, name: &str) -> String {
    let kind = kind.to_lowercase();
    match api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}
