//! `APIService`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status};
use crate::table::age;
use crate::value::{get, int, list, set_default, some_map, text};
use crate::{Column, Kind, NameRule, columns, status as statuses};

/// `APIService`.
pub(crate) struct ApiService;

impl Kind for ApiService {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(service) = some_map(&mut obj.0, "spec").and_then(|spec| some_map(spec, "service")) {
            set_default(service, "port", 443);
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
        if in_spec(obj, &["service"]).is_null() {
            let condition = json!({
                "type": "Available",
                "status": "True",
                "lastTransitionTime": Timestamp::now(),
                "reason": "Local",
                "message": "Local APIServices are always available",
            });
            statuses::status_mut(obj).insert("conditions".into(), json!([condition]));
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        let (group, version) = (text(spec, "group"), text(spec, "version"));
        let wanted = format!("{version}.{group}");
        if obj.name() != wanted {
            let metadata = At::new("metadata");
            let why = format!("must be `spec.version+\".\"+spec.group`: \"{wanted}\"");
            errors.invalid_text(&metadata.field("name"), obj.name(), &why);
        }
        if group.is_empty() {
            if version != "v1" {
                errors.required(
                    &at.field("group"),
                    "only v1 may have an empty group and it better be legacy kube",
                );
            }
        } else {
            for why in names::dns1123_subdomain(group) {
                errors.invalid_text(&at.field("group"), group, &why);
            }
        }
        for why in names::dns1035_label(version) {
            errors.invalid_text(&at.field("version"), version, &why);
        }
        for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let number = int(spec, key).unwrap_or(0);
            if number <= 0 || number > most {
                errors.invalid_int(&at.field(key), number, &format!("must be positive and less than {most}"));
            }
        }
        api_service_target(spec, &at, errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("apiregistration.k8s.io/APIService")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let service = match get(spec(obj), "service") {
            Some(service) => format!("{}/{}", text(service, "namespace"), text(service, "name")),
            None => "Local".into(),
        };
        let condition = list(status(obj), "conditions").iter().find(|c| text(c, "type") == "Available");
        let available = match condition.map(|c| (text(c, "status"), text(c, "reason"))) {
            None => "Unknown".into(),
            Some(("True", _)) => "True".into(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        vec![obj.name().into(), service.into(), available.into(), age(obj, now)]
    }
}

fn api_service_target(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let insecure = spec.get("insecureSkipTLSVerify").and_then(Value::as_bool).unwrap_or(false);
    let bundle = !text(spec, "caBundle").is_empty();
    let Some(service) = get(spec, "service") else {
        if bundle {
            errors.invalid_text(&at.field("caBundle"), "", "local APIServices may not have a caBundle");
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid(&at.field("insecureSkipTLSVerify"), &true.into(), why);
        }
        return;
    };
    let place = at.field("service");
    for key in ["namespace", "name"] {
        if text(service, key).is_empty() {
            errors.required(&place.field(key), "");
        }
    }
    crate::ports::number(int(service, "port").unwrap_or(443), &place.field("port"), errors);
    if insecure && bundle {
        let why = "may not be true if caBundle is present";
        errors.invalid(&at.field("insecureSkipTLSVerify"), &true.into(), why);
    }
}
