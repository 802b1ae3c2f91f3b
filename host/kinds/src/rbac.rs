//! Kinds of the group `rbac.authorization.k8s.io`.

use serde_json::{Map, Value};
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::top;
use crate::meta::NameRule;
use crate::table::age;
use crate::value::{list, maps_mut, set_default, some_map, text};
use crate::{Column, Kind, columns, internal, selector};

const GROUP: &str = "rbac.authorization.k8s.io";

/// `Role` and `ClusterRole`.
pub(crate) struct Role;

impl Kind for Role {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        let namespaced = obj.kind() == "Role";
        let at = At::new("rules");
        for (i, rule) in top(obj, "rules").as_array().into_iter().flatten().enumerate() {
            check_rule(rule, namespaced, &at.index(i), errors);
        }
        let aggregation = top(obj, "aggregationRule");
        if aggregation.is_null() {
            return;
        }
        let rule_at = At::new("aggregationRule");
        let at = rule_at.field("clusterRoleSelectors");
        let selectors = list(aggregation, "clusterRoleSelectors");
        if selectors.is_empty() {
            errors.required(&at, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (i, chosen) in selectors.iter().enumerate() {
            selector::check(chosen, &at.index(i), errors);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

fn check_rule(rule: &Value, namespaced: bool, at: &At<'_>, errors: &mut Errors) {
    if list(rule, "verbs").is_empty() {
        errors.required(&at.field("verbs"), "verbs must contain at least one value");
    }
    let groups_and_more = ["apiGroups", "resources", "resourceNames"];
    if !list(rule, "nonResourceURLs").is_empty() {
        let urls = at.field("nonResourceURLs");
        if namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            errors.invalid(&urls, &rule["nonResourceURLs"], why);
        }
        if groups_and_more.iter().any(|key| !list(rule, key).is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.invalid(&urls, &rule["nonResourceURLs"], why);
        }
        return;
    }
    if list(rule, "apiGroups").is_empty() {
        let why = "resource rules must supply at least one api group";
        errors.required(&at.field("apiGroups"), why);
    }
    if list(rule, "resources").is_empty() {
        let why = "resource rules must supply at least one resource";
        errors.required(&at.field("resources"), why);
    }
}

/// `RoleBinding` and `ClusterRoleBinding`.
pub(crate) struct Binding;

impl Kind for Binding {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(role) = some_map(&mut obj.0, "roleRef") {
            set_default(role, "apiGroup", GROUP);
        }
        maps_mut(&mut obj.0, "subjects").for_each(subject);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let namespaced = obj.kind() == "RoleBinding";
        let role = top(obj, "roleRef");
        let at = At::new("roleRef");
        let group = text(role, "apiGroup");
        if group != GROUP {
            errors.unsupported(&at.field("apiGroup"), group, &[GROUP]);
        }
        let kinds: &[&str] = if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        let kind = text(role, "kind");
        if !kinds.contains(&kind) {
            errors.unsupported(&at.field("kind"), kind, kinds);
        }
        match text(role, "name") {
            "" => errors.required(&at.field("name"), ""),
            name => {
                for why in NameRule::PathSegment.check(name, false) {
                    errors.invalid_text(&at.field("name"), name, &why);
                }
            }
        }
        let at = At::new("subjects");
        for (i, subject) in top(obj, "subjects").as_array().into_iter().flatten().enumerate() {
            check_subject(subject, namespaced, &at.index(i), errors);
        }
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        self.check(new, errors);
        if top(new, "roleRef") != top(old, "roleRef") {
            let shown = internal::line(top(new, "roleRef"), "rbac.authorization.k8s.io/v1.RoleRef");
            errors.invalid_shown(&At::new("roleRef"), &shown, "cannot change roleRef");
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("rbac.authorization.k8s.io/RoleBinding")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let role = top(obj, "roleRef");
        let of = |kind: &str| {
            let subjects = top(obj, "subjects").as_array().into_iter().flatten();
            let name = |s: &Value| match kind {
                "ServiceAccount" => format!("{}/{}", text(s, "namespace"), text(s, "name")),
                _ => text(s, "name").to_owned(),
            };
            subjects.filter(|s| text(s, "kind") == kind).map(name).collect::<Vec<_>>().join(", ")
        };
        vec![
            obj.name().into(),
            format!("{}/{}", text(role, "kind"), text(role, "name")).into(),
            age(obj, now),
            of("User").into(),
            of("Group").into(),
            of("ServiceAccount").into(),
        ]
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

/// `ClusterRoleBinding`: as [`Binding`], with columns that say so.
pub(crate) struct ClusterBinding;

impl Kind for ClusterBinding {
    fn set_defaults(&self, obj: &mut Object) {
        Binding.set_defaults(obj);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        Binding.check(obj, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        Binding.check_update(new, old, errors);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("rbac.authorization.k8s.io/ClusterRoleBinding")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        Binding.row(obj, now)
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

fn subject(subject: &mut Map<String, Value>) {
    if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
        set_default(subject, "apiGroup", GROUP);
    }
}

fn check_subject(subject: &Value, namespaced: bool, at: &At<'_>, errors: &mut Errors) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errors.required(&at.field("name"), "");
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                for why in NameRule::Subdomain.check(name, false) {
                    errors.invalid_text(&at.field("name"), name, &why);
                }
            }
            if !group.is_empty() {
                errors.unsupported(&at.field("apiGroup"), group, &[""]);
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.required(&at.field("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.unsupported(&at.field("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.unsupported(&at.field("kind"), other, &["Group", "ServiceAccount", "User"]),
    }
}
