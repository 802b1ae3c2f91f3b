//! What parts of the program have to say of objects, as the API server asks them: Knative's defaults and rules.

use wasmk_api::{Object, Reason, Status};
use wasmk_apiserver::KindHook;
use wasmk_functions::Admission;

/// [`Admission`] as a hook.
pub(crate) struct Knative(pub Admission);

impl KindHook for Knative {
    fn applies(&self, group: &str, resource: &str) -> bool {
        Admission::applies(group, resource)
    }

    fn mutate(&self, object: &mut Object, old: Option<&Object>, user: &str) {
        self.0.mutate(object, old, user);
    }

    fn validate(&self, object: &Object, old: Option<&Object>) -> Result<(), Status> {
        // Knative's webhooks answer so, and not with `Invalid`.
        self.0.validate(object, old).map_err(|why| Status::new(Reason::BadRequest, why))
    }
}
