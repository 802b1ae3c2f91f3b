//! The schema index: what fields a kind has, how they merge, default and look in Go.
//!
//! Built-in types come from a table inside the program and are parsed one by one when first asked for;
//! the schemas of custom resources are read from their definitions. Both are walked with [`Schema`], a
//! cheap handle that follows references by itself, so recursive types need no care.

mod builtin;
mod custom;
mod node;

use std::sync::Arc;

use serde_json::Value;
use wasmk_api::Gvk;

pub use custom::SchemaError;
pub use node::{Kind, ListType, MapType, Presence, Rule, Rules};

use node::Node;

/// The schema of one served kind; cheap to clone.
#[derive(Clone, Debug)]
pub struct KindSchema(Root);

#[derive(Clone, Debug)]
enum Root {
    BuiltIn(&'static Node),
    Custom(Arc<Node>),
}

impl KindSchema {
    /// The schema of a built-in kind.
    pub fn built_in(gvk: &Gvk) -> Option<Self> {
        builtin::by_gvk(gvk).map(|node| Self(Root::BuiltIn(node)))
    }

    /// The schema of a built-in type, by its OpenAPI name (`io.k8s.api.core.v1.PodSpec`).
    pub fn of_type(name: &str) -> Option<Self> {
        builtin::by_name(name).map(|node| Self(Root::BuiltIn(node)))
    }

    /// From a CRD version's `openAPIV3Schema`. The root gets `apiVersion`, `kind` and `metadata`.
    ///
    /// # Errors
    /// When the value is no schema: ill-typed keywords or nesting beyond the decoder's bound.
    pub fn custom(open_api_v3_schema: &Value) -> Result<Self, SchemaError> {
        custom::root(open_api_v3_schema).map(|node| Self(Root::Custom(Arc::new(node))))
    }

    /// For a CRD version without a schema (`preserveUnknownFields`): any object with metadata.
    pub fn any() -> Self {
        Self(Root::Custom(Arc::new(custom::any_root())))
    }

    /// The schema of the whole object.
    pub fn schema(&self) -> Schema<'_> {
        match &self.0 {
            Root::BuiltIn(node) => Schema::at(node),
            Root::Custom(node) => Schema::at(node),
        }
    }

    /// Whether it is a Go type of Kubernetes (unknown fields dropped, zero values not stored).
    pub fn is_built_in(&self) -> bool {
        matches!(self.0, Root::BuiltIn(_))
    }
}

/// The schema at one place of an object: the field's own attributes and those of its type.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// What the containing type says of the field.
    site: &'a Node,
    /// The type, references followed.
    node: &'a Node,
}

impl<'a> Schema<'a> {
    fn at(site: &'a Node) -> Self {
        let node: &'a Node = match site.reference {
            Some(id) => builtin::node(id),
            None => site,
        };
        Self { site, node }
    }

    /// The type of value.
    pub fn kind(self) -> Kind {
        self.node.kind
    }

    /// `format`, for instance `int32`, `byte`, `date-time`; empty when there is none.
    pub fn format(self) -> &'a str {
        self.node.rules.as_ref().and_then(|rules| rules.format.as_deref()).unwrap_or(match self.node.kind {
            Kind::Integer32 => "int32",
            Kind::Integer64 => "int64",
            Kind::Number => "double",
            Kind::Bytes => "byte",
            Kind::Time | Kind::MicroTime => "date-time",
            Kind::IntOrString => "int-or-string",
            _ => "",
        })
    }

    /// The built-in type's OpenAPI name; `None` for scalars, lists, maps and custom schemas.
    pub fn type_name(self) -> Option<&'static str> {
        match self.site.reference {
            Some(id) => Some(builtin::name(id)),
            None => self.node.own.map(builtin::name),
        }
    }

    /// How Go names the type (`v1.ObjectMeta`, `map[string]string`); for error messages of built-ins.
    pub fn go_type(self) -> String {
        node::go_type(self.site)
    }

    /// A declared field.
    pub fn field(self, name: &str) -> Option<Schema<'a>> {
        self.node.fields.get(name).map(Schema::at)
    }

    /// The declared fields, in the order Kubernetes writes them (built-ins) or as declared (custom).
    pub fn fields(self) -> impl ExactSizeIterator<Item = (&'a str, Schema<'a>)> {
        self.node.fields.iter().map(|(name, node)| (&**name, Schema::at(node)))
    }

    /// Whether any field is declared.
    pub fn has_fields(self) -> bool {
        !self.node.fields.is_empty()
    }

    /// The names of required fields.
    pub fn required(self) -> &'a [Box<str>] {
        &self.node.required
    }

    /// The schema of a list's items.
    pub fn items(self) -> Option<Schema<'a>> {
        self.node.items.as_deref().map(Schema::at)
    }

    /// The schema of a map's values (`additionalProperties`); its keys are free text.
    pub fn values(self) -> Option<Schema<'a>> {
        self.node.values.as_deref().map(Schema::at)
    }

    /// What an absent field becomes.
    pub fn default(self) -> Option<&'a Value> {
        self.site.default.as_deref()
    }

    /// How a list merges in server-side apply; lists that say nothing are atomic.
    pub fn list_type(self) -> ListType {
        self.node.list_type
    }

    /// The keys of a list of type `map`, in order.
    pub fn list_keys(self) -> &'a [Box<str>] {
        &self.node.list_keys
    }

    /// How an object or map merges in server-side apply; granular unless the field or type says otherwise.
    pub fn map_type(self) -> MapType {
        self.site.map_type.or(self.node.map_type).unwrap_or_default()
    }

    /// Strategic merge strategies of the field: `merge`, `replace`, `retainKeys`, combined with commas;
    /// empty when there is none.
    pub fn patch_strategy(self) -> &'a str {
        self.site.patch_strategy.as_deref().unwrap_or("")
    }

    /// Whether the strategic merge strategies contain that one.
    pub fn has_patch_strategy(self, strategy: &str) -> bool {
        self.patch_strategy().split(',').any(|s| s == strategy)
    }

    /// The key by which strategic merge tells items of the list apart.
    pub fn patch_key(self) -> Option<&'a str> {
        self.site.patch_key.as_deref()
    }

    /// What Kubernetes writes when the field has its zero value.
    pub fn presence(self) -> Presence {
        self.site.presence
    }

    /// Whether the value may be an integer or text.
    pub fn int_or_string(self) -> bool {
        self.node.kind == Kind::IntOrString
    }

    /// Whether undeclared fields stay (custom resources).
    pub fn preserve_unknown(self) -> bool {
        self.node.preserve_unknown
    }

    /// Whether the value is a whole object with `apiVersion`, `kind` and `metadata` (custom resources).
    pub fn embedded_resource(self) -> bool {
        self.node.embedded
    }

    /// Whether null is a value of its own (custom resources).
    pub fn nullable(self) -> bool {
        self.node.nullable
    }

    /// The values allowed, when they are enumerated.
    pub fn enumeration(self) -> Option<&'a [Value]> {
        self.rules().and_then(|rules| rules.enumeration.as_deref())
    }

    /// What a definition says of `metadata` beyond its type: restrictions of names.
    pub(crate) fn restrictions(self) -> Option<Schema<'a>> {
        let restricted = self.site.reference.is_some() && self.site.rules.is_some();
        restricted.then_some(Self { site: self.site, node: self.site })
    }

    /// Bounds, patterns and combined schemas of a custom schema.
    pub fn rules(self) -> Option<&'a Rules> {
        self.node.rules.as_deref()
    }

    /// The CEL rules of a custom schema at this place.
    pub fn validations(self) -> &'a [Rule] {
        self.rules().map_or(&[], |rules| &rules.validations)
    }

    /// What the field is for, in the words of a custom schema.
    pub fn description(self) -> Option<&'a str> {
        self.rules().and_then(|rules| rules.description.as_deref())
    }
}

/// The names of all built-in types, sorted.
pub fn built_in_types() -> impl Iterator<Item = &'static str> {
    builtin::names()
}

/// The kinds (`group/version/Kind`, group empty for core) a built-in type is the body of.
pub fn kinds_of_type(name: &str) -> Vec<Gvk> {
    builtin::kinds_of(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> KindSchema {
        KindSchema::built_in(&Gvk::new("", "v1", "Pod")).unwrap()
    }

    fn down<'a>(schema: Schema<'a>, path: &str) -> Schema<'a> {
        path.split('.').fold(schema, |s, part| match part {
            "[]" => s.items().unwrap(),
            "{}" => s.values().unwrap(),
            name => s.field(name).unwrap_or_else(|| panic!("{path}: no {name}")),
        })
    }

    #[test]
    fn built_in_lists_know_their_keys() {
        let pod = pod();
        let ports = down(pod.schema(), "spec.containers.[].ports");
        assert_eq!(ports.list_type(), ListType::Map);
        assert_eq!(ports.list_keys().iter().map(|k| &**k).collect::<Vec<_>>(), ["containerPort", "protocol"]);
        assert_eq!((ports.patch_strategy(), ports.patch_key()), ("merge", Some("containerPort")));
        assert_eq!(down(ports, "[].protocol").default(), Some(&json!("TCP")));
        let volumes = down(pod.schema(), "spec.volumes");
        assert!(volumes.has_patch_strategy("retainKeys") && volumes.has_patch_strategy("merge"));
        assert_eq!(down(pod.schema(), "spec.nodeSelector").map_type(), MapType::Atomic);
        assert_eq!(down(pod.schema(), "metadata.finalizers").list_type(), ListType::Set);
    }

    #[test]
    fn go_names_and_presence() {
        let pod = pod();
        for (path, go, presence) in [
            ("metadata", "v1.ObjectMeta", Presence::Always),
            ("metadata.labels", "map[string]string", Presence::Omit),
            ("spec.containers", "[]v1.Container", Presence::Always),
            ("spec.containers.[].imagePullPolicy", "v1.PullPolicy", Presence::Omit),
            ("spec.containers.[].resources.limits", "v1.ResourceList", Presence::Omit),
            ("spec.terminationGracePeriodSeconds", "int64", Presence::Pointer),
        ] {
            let schema = down(pod.schema(), path);
            assert_eq!((schema.go_type().as_str(), schema.presence()), (go, presence), "{path}");
        }
    }

    #[test]
    fn every_built_in_type_can_be_read() {
        for name in built_in_types() {
            let kind = KindSchema::of_type(name).unwrap();
            for (field, schema) in kind.schema().fields() {
                assert!(!schema.go_type().is_empty(), "{name}.{field}");
                assert!(schema.kind() != Kind::Array || schema.items().is_some(), "{name}.{field}");
            }
        }
    }

    #[test]
    fn custom_roots_have_metadata() {
        let kind = KindSchema::custom(&json!({
            "type": "object",
            "properties": {"spec": {"type": "object", "properties": {
                "n": {"type": "integer", "default": 3},
                "l": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "m": {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}},
            }}}
        }))
        .unwrap();
        let root = kind.schema();
        assert_eq!(
            down(root, "metadata").type_name(),
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        );
        assert_eq!(down(root, "spec.n").default(), Some(&json!(3)));
        assert_eq!(down(root, "spec.l").list_type(), ListType::Set);
        assert!(down(root, "spec.m.{}").int_or_string());
        assert!(!kind.is_built_in() && pod().is_built_in());
    }
}
