//! `/logs`: the control plane's own log files, for those who may read that path.

use std::io::SeekFrom;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use wasmk_api::Status;

use crate::{
    dispatch::not_found_page,
    http::{Answer, respond},
    server::Core,
};

/// The most of a file that is served, in bytes: its end.
const MAX_SERVED: u64 = 16 << 20;

/// Answers `/logs` with a list of the files, `/logs/NAME` with one.
///
/// # Errors
/// When a file that is there cannot be read.
pub(crate) async fn serve(core: &Core, path: &[&str]) -> Result<Answer, Status> {
    let files = &core.config.logs;
    match path {
        [] | [""] if !files.iter().any(|file| file.path.is_file()) => Ok(not_found_page()),
        [] | [""] => {
            let there = files.iter().filter(|file| file.path.is_file());
            let lines: String = there.map(|f| format!("<a href=\"/logs/{0}\">{0}</a>\n", f.name)).collect();
            let page = format!("<!doctype html>\n<pre>\n{lines}</pre>\n");
            Ok(respond::bytes(StatusCode::OK, "text/html; charset=utf-8", page))
        }
        [name] => match files.iter().find(|file| file.name == *name && file.path.is_file()) {
            Some(file) => {
                let text = end_of(&file.path).await;
                let text = text.map_err(|e| Status::internal(format!("cannot read the log {name}: {e}")))?;
                Ok(respond::bytes(StatusCode::OK, "text/plain; charset=utf-8", text))
            }
            None => Ok(not_found_page()),
        },
        _ => Ok(not_found_page()),
    }
}

async fn end_of(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_SERVED))).await?;
    let mut text = Vec::new();
    file.take(MAX_SERVED).read_to_end(&mut text).await?;
    Ok(text)
}
