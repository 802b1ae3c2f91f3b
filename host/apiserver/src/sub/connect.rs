//! Connections to pods, services and nodes, as admission sees them: the options a client connects with.

use serde_json::{Map, Value};
use wasmk_api::{Object, Status};

use crate::{admission, call::Call, server::Core, table::Resource, write::Work};

/// Subresource and kind, with the names of options in the query.
type Row =
    (&'static str, &'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

/// The kinds of connections with their options in the query: texts, flags, lists of texts.
const KINDS: [Row; 3] = [
    ("exec", "PodExecOptions", &["container"], &["stdin", "stdout", "stderr", "tty"], &["command"]),
    ("attach", "PodAttachOptions", &["container"], &["stdin", "stdout", "stderr", "tty"], &[]),
    ("portforward", "PodPortForwardOptions", &[], &[], &[]),
];

/// Asks webhooks about a connection.
///
/// # Errors
/// When one refuses it.
pub(super) async fn admit(
    core: &std::sync::Arc<Core>,
    call: &Call,
    resource: &std::sync::Arc<Resource>,
) -> Result<(), Status> {
    let Some(options) = options(call, resource) else { return Ok(()) };
    admission::connect(&Work::new(core, call, resource)?, &options).await
}

fn options(call: &Call, resource: &Resource) -> Option<Object> {
    let query = &call.query;
    let mut map = Map::new();
    let row = KINDS.iter().find(|row| row.0 == call.info.subresource);
    let kind = match row {
        Some((_, kind, texts, flags, lists)) => {
            for name in texts.iter().filter(|name| query.get(name).is_some()) {
                map.insert((*name).into(), query.text(name).into());
            }
            for name in flags.iter().filter(|name| query.flag(name)) {
                map.insert((*name).into(), true.into());
            }
            for name in *lists {
                map.insert((*name).into(), query.all(name).map(Value::from).collect());
            }
            (*kind).to_owned()
        }
        None if call.info.subresource == "proxy" => {
            map.insert("path".into(), call.info.rest.clone().into());
            format!("{}ProxyOptions", resource.gvk.kind)
        }
        None => return None,
    };
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), "v1".into());
    Some(Object(map))
}
