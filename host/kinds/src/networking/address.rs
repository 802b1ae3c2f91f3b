//! Service addresses: the ranges, and who has which.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{in_spec, spec};
use crate::meta::IMMUTABLE;
use crate::table::{age, or};
use crate::value::{get, or_null, text, texts};
use crate::{Column, Kind, columns, net};

/// `ServiceCIDR`.
pub(crate) struct ServiceCidr;

impl Kind for ServiceCidr {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let ranges: Vec<&str> = texts(spec(obj), "cidrs").collect();
        let spec_at = At::new("spec");
        let at = spec_at.field("cidrs");
        if ranges.is_empty() {
            errors.required(&at, "at least one CIDR required");
            return;
        }
        if ranges.len() > 2 {
            let why = "only one CIDR allowed or two if of different families";
            errors.invalid(&at, or_null(spec(obj), "cidrs"), why);
        }
        for (i, range) in ranges.iter().enumerate() {
            net::strict_cidr(range, &at.index(i), errors);
        }
        let family = |range: &str| net::Cidr::parse(range).map(|c| c.address.is_ipv4());
        if let [a, b] = ranges[..]
            && family(a).is_some()
            && family(a) == family(b)
        {
            let why = "only one CIDR allowed or two if of different families";
            errors.invalid(&at, or_null(spec(obj), "cidrs"), why);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let at = At::new("spec");
        let (ranges, before) = (in_spec(new, &["cidrs"]), in_spec(old, &["cidrs"]));
        let count = |v: &Value| v.as_array().map_or(0, Vec::len);
        let grows = count(before) == 1 && count(ranges) == 2 && ranges.get(0) == before.get(0);
        if ranges != before && !grows {
            errors.invalid(&at.field("cidrs"), ranges, IMMUTABLE);
        }
        if grows {
            self.check(new, errors);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/ServiceCIDR")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let ranges = texts(spec(obj), "cidrs").collect::<Vec<_>>().join(",");
        vec![obj.name().into(), ranges.into(), age(obj, now)]
    }
}

/// `IPAddress`.
pub(crate) struct IpAddress;

impl Kind for IpAddress {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let metadata = At::new("metadata");
        let canonical = obj.name().parse::<std::net::IpAddr>().map(|ip| ip.to_string());
        match canonical {
            Err(_) => errors.invalid_text(&metadata.field("name"), obj.name(), net::NOT_AN_IP),
            Ok(text) if text != obj.name() => {
                errors.invalid_text(&metadata.field("name"), obj.name(), "must be in canonical form");
            }
            Ok(_) => {}
        }
        let spec_at = At::new("spec");
        let at = spec_at.field("parentRef");
        let Some(parent) = get(spec(obj), "parentRef") else {
            errors.required(&at, "");
            return;
        };
        for key in ["resource", "name"] {
            if text(parent, key).is_empty() {
                errors.required(&at.field(key), "");
            }
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        let (parent, before) = (in_spec(new, &["parentRef"]), in_spec(old, &["parentRef"]));
        if parent != before {
            let at = At::new("spec");
            errors.invalid(&at.field("parentRef"), parent, IMMUTABLE);
        }
    }

    fn name_rule(&self) -> crate::NameRule {
        crate::NameRule::PathSegment
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("networking.k8s.io/IPAddress")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let parent = or_null(spec(obj), "parentRef");
        let mut parts = vec![text(parent, "resource")];
        parts.extend([text(parent, "namespace"), text(parent, "name")].into_iter().filter(|p| !p.is_empty()));
        let group = text(parent, "group");
        let mut shown = parts.join("/");
        if !group.is_empty() {
            shown = shown.replacen(parts[0], &format!("{}.{group}", parts[0]), 1);
        }
        vec![obj.name().into(), or(&shown, "<none>").into(), age(obj, now)]
    }
}
