//! Keeps what it is told, reads its configuration and writes to its log by the drafts of WASI.

use wasmk_guest::keyvalue::{Error, Store};
use wasmk_guest::{IntoResponse, Request, Response};

wit_bindgen::generate!({
    inline: "package tests:state;
        world state {
            import wasi:config/store@0.2.0-rc.1;
            import wasi:logging/logging@0.1.0-draft;
        }",
    path: ["../../../sdk/wit/deps/config.wit", "../../../sdk/wit/deps/logging.wit"],
    world: "tests:state/state",
    generate_all,
});

use wasi::config::store as config;
use wasi::logging::logging::{Level, log};

wasmk_guest::serve!(answer);

/// `/STORE/KEY`: GET reads, PUT writes, POST adds 1, PATCH appends, DELETE removes. `/STORE/`: all keys.
/// `/config`: all variables. `/log`: two lines.
fn answer(mut request: Request) -> Response {
    match request.path() {
        "/config" => return format!("{:?} {:?}", config::get("COLOR"), config::get("NONE")).into_response(),
        "/log" => {
            log(Level::Warn, "shop", "two\nlines");
            log(Level::Info, "", &format!("{} variables", config::get_all().unwrap().len()));
            return Response::text("");
        }
        _ => {}
    }
    let path = request.path().to_owned();
    let (store, key) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let body = request.text().unwrap_or_default();
    match state(request.method(), store, key, body) {
        Ok(text) => Response::text(text),
        Err(error) => Response::text(format!("{error}\n")).with_status(409),
    }
}

fn state(method: &str, store: &str, key: &str, body: String) -> Result<String, Error> {
    let store = Store::open(store)?;
    if key.is_empty() {
        return Ok(store.keys()?.join(" "));
    }
    match method {
        "PUT" => store.set(key, body).map(|()| String::new()),
        "POST" => store.add(key, 1).map(|sum| sum.to_string()),
        "PATCH" => {
            let append = |old: Option<Vec<u8>>| [old.unwrap_or_default(), body.clone().into_bytes()].concat();
            Ok(String::from_utf8_lossy(&store.update(key, append)?).into_owned())
        }
        "DELETE" => store.delete(key).map(|()| String::new()),
        _ => Ok(store.text(key)?.unwrap_or_else(|| format!("none, {}", store.exists(key).unwrap_or(true)))),
    }
}
