//! Keeps what it is told, reads its configuration and writes to its log by the drafts of WASI.

use std::io::{self, Read, Write};

use wasmk_guest::blobstore::{Container, Error as BlobError};
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
/// `/config`: all variables. `/log`: two lines. `/blobs/CONTAINER/OBJECT`: see [`blobs`].
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
    if let Some(place) = request.path().strip_prefix("/blobs/").map(str::to_owned) {
        return match blobs(&mut request, &place) {
            Ok(bytes) => Response::bytes("application/octet-stream", bytes),
            Err(error) => Response::text(format!("{error}\n")).with_status(409),
        };
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

/// GET reads (`?FIRST-LAST` a part, `?info` its size), PUT writes what it gets, POST writes so many bytes, DELETE removes;
/// `COPY` and `MOVE` go to the container and object in the query. `/blobs/CONTAINER/`: all objects; DELETE removes the
/// container.
fn blobs(request: &mut Request, place: &str) -> Result<Vec<u8>, BlobError> {
    let (container, object) = place.split_once('/').unwrap_or((place, ""));
    let query = request.query().unwrap_or_default().to_owned();
    let method = request.method().to_owned();
    if object.is_empty() {
        return match &*method {
            "DELETE" => Container::get(container)?.remove().map(|()| Vec::new()),
            _ => Ok(Container::get(container)?.objects()?.join(" ").into_bytes()),
        };
    }
    let container = Container::open(container)?;
    match &*method {
        "PUT" => {
            let mut writer = container.writer()?;
            io::copy(&mut request.body(), &mut writer)?;
            writer.finish(object)?;
        }
        "POST" => {
            let mut writer = container.writer()?;
            io::copy(&mut io::repeat(b'x').take(query.parse().unwrap_or(0)), &mut writer)?;
            writer.flush()?;
            writer.finish(object)?;
        }
        "DELETE" => container.delete(object)?,
        "COPY" | "MOVE" => {
            let (to, name) = query.split_once('/').unwrap_or_default();
            let to = Container::open(to)?;
            match &*method {
                "COPY" => container.copy(object, &to, name)?,
                _ => container.rename(object, &to, name)?,
            }
        }
        _ if query == "info" => {
            return Ok(format!("{:?}", container.info(object)?.map(|info| info.size)).into_bytes());
        }
        _ => {
            let Some((first, last)) = query.split_once('-') else { return container.read(object) };
            let mut part = Vec::new();
            let (first, last) = (first.parse().unwrap_or(0), last.parse().unwrap_or(u64::MAX));
            container.reader(object, first, last)?.read_to_end(&mut part)?;
            return Ok(part);
        }
    }
    Ok(Vec::new())
}
