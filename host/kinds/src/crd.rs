//! `CustomResourceDefinition`: its defaults and life; the checks of its schemas stand with the schemas.

use serde_json::{Value, json};
use wasmk_api::Object;

use crate::fields::{in_spec, spec, status};
use crate::value::{flag, list, map_mut, set_default, some_map, text, texts};
use crate::{Kind, NameRule, status as statuses};

pub(crate) struct CustomResourceDefinition;

impl Kind for CustomResourceDefinition {
    fn set_defaults(&self, obj: &mut Object) {
        let kind = in_spec(obj, &["names", "kind"]).as_str().unwrap_or("").to_owned();
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        let defined = map_mut(spec, "names");
        if !kind.is_empty() {
            set_default(defined, "singular", kind.to_lowercase());
            set_default(defined, "listKind", format!("{kind}List"));
        }
        let conversion = map_mut(spec, "conversion");
        set_default(conversion, "strategy", "None");
        let client = some_map(conversion, "webhook").and_then(|webhook| some_map(webhook, "clientConfig"));
        if let Some(service) = client.and_then(|client| some_map(client, "service")) {
            set_default(service, "port", 443);
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
        store_version(obj);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        statuses::keep(new, old);
        store_version(new);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// The version objects are stored in from now on is one they may be stored in.
fn store_version(obj: &mut Object) {
    let version = list(spec(obj), "versions").iter().find(|v| flag(v, "storage")).map(|v| text(v, "name"));
    let Some(version) = version.filter(|v| !v.is_empty()).map(str::to_owned) else { return };
    let mut stored: Vec<String> = texts(status(obj), "storedVersions").map(str::to_owned).collect();
    if !stored.contains(&version) {
        stored.push(version);
    }
    let status: &mut serde_json::Map<String, Value> = statuses::status_mut(obj);
    status.insert("storedVersions".into(), json!(stored));
}
