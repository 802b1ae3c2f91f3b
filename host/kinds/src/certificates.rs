//! Kinds of the group `certificates.k8s.io`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::table::{age, or};
use crate::value::{int, list, text};
use crate::{Column, Kind, NameRule, columns, status as statuses};

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
