//! Reviews of access and tokens.

use serde_json::Value;
use wasmk_api::Object;

use crate::errors::{At, Errors};
use crate::fields::spec;
use crate::value::{get, int, list, set_default, some_map, text};
use crate::{Kind, NameRule, internal, status as statuses};

/// Reviews of access and tokens, which are answered and not kept.
pub(crate) struct Review;

/// The shortest and longest life of a token, in seconds.
const TOKEN_LIFE: (i64, i64) = (600, 1 << 32);

impl Kind for Review {
    fn set_defaults(&self, obj: &mut Object) {
        if obj.kind() == "TokenRequest"
            && let Some(spec) = some_map(&mut obj.0, "spec")
        {
            set_default(spec, "expirationSeconds", 3600);
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        statuses::reset(obj);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        if obj.kind() == "TokenRequest" {
            token_life(spec, &at, errors);
        }
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

fn token_life(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let seconds = int(spec, "expirationSeconds").unwrap_or(0);
    let at = at.field("expirationSeconds");
    if seconds < TOKEN_LIFE.0 {
        errors.invalid_int(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > TOKEN_LIFE.1 {
        errors.invalid_int(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
}
