//! Kinds with little of their own: leases, priority and runtime classes, certificate requests, API services,
//! reviews.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec, status, top};
use crate::meta::{IMMUTABLE, NOT_NEGATIVE};
use crate::networking::plain_selector;
use crate::pod::validate;
use crate::resource_names;
use crate::table::{age, or};
use crate::value::{entries, get, int, list, or_null, set_default, some_map, text, text_at};
use crate::{Column, Kind, NameRule, columns, internal, status as statuses};

/// `Lease`.
pub(crate) struct Lease;

impl Kind for Lease {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        if let Some(seconds) = int(spec(obj), "leaseDurationSeconds").filter(|s| *s <= 0) {
            errors.invalid_int(&at.field("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = int(spec(obj), "leaseTransitions").filter(|c| *c < 0) {
            errors.invalid_int(&at.field("leaseTransitions"), count, NOT_NEGATIVE);
        }
        if let Some(strategy) = text_at(spec(obj), "strategy") {
            crate::domain_path::check(strategy, &at.field("strategy"), errors);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn creates_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("coordination.k8s.io/Lease")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), text(spec(obj), "holderIdentity").into(), age(obj, now)]
    }
}

/// `LeaseCandidate`.
pub(crate) struct LeaseCandidate;

impl Kind for LeaseCandidate {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        for key in ["leaseName", "strategy", "binaryVersion"] {
            if text(spec(obj), key).is_empty() {
                errors.required(&at.field(key), "");
            }
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("coordination.k8s.io/LeaseCandidate")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let texts = ["leaseName", "binaryVersion", "emulationVersion", "pingTime", "renewTime"];
        std::iter::once(obj.name().into())
            .chain(texts.map(|key| text(spec(obj), key).into()))
            .chain([age(obj, now)])
            .collect()
    }
}

/// `PriorityClass`.
pub(crate) struct PriorityClass;

/// The highest priority users may define.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

impl Kind for PriorityClass {
    fn set_defaults(&self, obj: &mut Object) {
        set_default(&mut obj.0, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let value = top(obj, "value").as_i64().unwrap_or(0);
        let metadata = At::new("metadata");
        if let Some(known) = system_priority(obj.name()) {
            if value != known {
                let why = format!(
                    "only system-defined PriorityClasses with the value {known} may be named {}",
                    obj.name()
                );
                errors.forbidden(&metadata.field("name"), &why);
            }
        } else {
            if obj.name().starts_with("system-") {
                let why = "priority class names with 'system-' prefix are reserved for system use only. error: system- priority class is not known";
                errors.forbidden(&metadata.field("name"), why);
            }
            if value > HIGHEST_PRIORITY {
                let why = "maximum allowed value of a user defined priority is 1000000000";
                errors.forbidden(&At::new("value"), why);
            }
        }
        let policy = top(obj, "preemptionPolicy").as_str().unwrap_or("");
        if !matches!(policy, "Never" | "PreemptLowerPriority") {
            errors.unsupported(&At::new("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        if top(new, "value") != top(old, "value") {
            errors.forbidden(&At::new("Value"), "may not be changed in an update.");
        }
        if top(new, "preemptionPolicy") != top(old, "preemptionPolicy") {
            errors.invalid(&At::new("preemptionPolicy"), top(new, "preemptionPolicy"), IMMUTABLE);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, _new: &Object, _old: &Object) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("scheduling.k8s.io/PriorityClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![
            obj.name().into(),
            top(obj, "value").as_i64().unwrap_or(0).into(),
            top(obj, "globalDefault").as_bool().unwrap_or(false).into(),
            age(obj, now),
            top(obj, "preemptionPolicy").as_str().unwrap_or("").into(),
        ]
    }
}

fn system_priority(name: &str) -> Option<i64> {
    match name {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    }
}

/// `RuntimeClass`.
pub(crate) struct RuntimeClass;

impl Kind for RuntimeClass {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let handler = top(obj, "handler").as_str().unwrap_or("");
        for why in names::dns1123_label(handler) {
            errors.invalid_text(&At::new("handler"), handler, &why);
        }
        let at = At::new("overhead");
        let at = at.field("limits");
        for (name, value) in entries(top(obj, "overhead"), "podFixed") {
            resource_names::of_container(name, &at.key(name), errors);
            resource_names::not_negative(value, &at.key(name), errors);
        }
        let scheduling = top(obj, "scheduling");
        let at = At::new("scheduling");
        plain_selector(scheduling, "nodeSelector", &at, errors);
        validate::tolerations(list(scheduling, "tolerations"), &at.field("tolerations"), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if top(new, "handler") != top(old, "handler") {
            errors.invalid(&At::new("handler"), top(new, "handler"), IMMUTABLE);
        }
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("node.k8s.io/RuntimeClass")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), top(obj, "handler").clone(), age(obj, now)]
    }
}

/// `CertificateSigningRequest`.
pub(crate) struct CertificateSigningRequest;

impl Kind for CertificateSigningRequest {
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        // The spec says who asked for what; nobody changes that later.
        new.0.insert("spec".into(), spec(old).clone());
        statuses::keep(new, old);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        if text(spec, "request").is_empty() {
            errors.invalid_text(&at.field("request"), "", "PEM block type must be CERTIFICATE REQUEST");
        }
        let usages = list(spec, "usages");
        if usages.is_empty() {
            errors.required(&at.field("usages"), "");
        }
        for (i, usage) in usages.iter().filter_map(Value::as_str).enumerate() {
            if usages[..i].iter().any(|other| other == usage) {
                errors.duplicate_text(&at.field("usages").index(i), usage);
            }
        }
        let signer = text(spec, "signerName");
        match signer.split_once('/') {
            _ if signer.is_empty() => errors.required(&at.field("signerName"), ""),
            None => {
                let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
                errors.invalid_text(&at.field("signerName"), signer, why);
            }
            Some((domain, _)) => {
                for why in names::dns1123_subdomain(domain) {
                    errors.invalid_text(&at.field("signerName"), domain, &why);
                }
            }
        }
        if let Some(seconds) = int(spec, "expirationSeconds").filter(|s| *s < 600) {
            errors.invalid_int(
                &at.field("expirationSeconds"),
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("certificates.k8s.io/CertificateSigningRequest")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let seconds = int(spec, "expirationSeconds").and_then(|s| u64::try_from(s).ok());
        let duration = seconds
            .map_or("<none>".to_owned(), |s| wasmk_api::human_duration(std::time::Duration::from_secs(s)));
        vec![
            obj.name().into(),
            age(obj, now),
            or(text(spec, "signerName"), "<none>").into(),
            text(spec, "username").into(),
            duration.into(),
            request_state(status(obj)).into(),
        ]
    }
}

fn request_state(status: &Value) -> String {
    let has = |kind: &str| list(status, "conditions").iter().any(|c| text(c, "type") == kind);
    let mut state = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(status, "certificate").is_empty() {
        state.push_str(",Issued");
    }
    state
}

/// `ClusterTrustBundle`.
pub(crate) struct ClusterTrustBundle;

impl Kind for ClusterTrustBundle {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        if text(spec(obj), "trustBundle").is_empty() {
            errors.invalid_text(&at.field("trustBundle"), "", "at least one trust anchor must be provided");
        }
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("certificates.k8s.io/ClusterTrustBundle")
    }

    fn row(&self, obj: &Object, _now: Timestamp) -> Vec<Value> {
        vec![obj.name().into(), or(text(spec(obj), "signerName"), "<none>").into()]
    }
}

/// `PodCertificateRequest`.
pub(crate) struct PodCertificateRequest;

impl Kind for PodCertificateRequest {
    fn field_names(&self) -> &'static [&'static str] {
        &["spec.signerName", "spec.podName", "spec.nodeName"]
    }
}

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

/// Reviews of access and tokens, which are answered and not kept.
pub(crate) struct Review;

impl Kind for Review {
    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        if !obj.kind().ends_with("AccessReview") {
            return;
        }
        let (resource, other) = (get(spec, "resourceAttributes"), get(spec, "nonResourceAttributes"));
        match (resource, other) {
            (Some(_), Some(other)) => {
                let shown = internal::line(other, "authorization.k8s.io/v1.NonResourceAttributes");
                let why = "cannot be specified in combination with resourceAttributes";
                errors.invalid_shown(&at.field("nonResourceAttributes"), &shown, why);
            }
            (None, None) => {
                let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                errors.invalid(&at.field("resourceAttributes"), &Value::Null, why);
            }
            _ => {}
        }
        let nobody = text(spec, "user").is_empty() && list(spec, "groups").is_empty();
        if nobody && !obj.kind().starts_with("Self") {
            let why = "at least one of user or group must be specified";
            errors.invalid_text(&at.field("user"), "", why);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::None
    }
}

/// `StorageVersionMigration`.
pub(crate) struct StorageVersionMigration;

impl Kind for StorageVersionMigration {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let place = at.field("resource");
        for why in names::dns1035_label(text(or_null(spec(obj), "resource"), "resource")) {
            errors.invalid_text(
                &place.field("resource"),
                text(or_null(spec(obj), "resource"), "resource"),
                &why,
            );
        }
    }
}
