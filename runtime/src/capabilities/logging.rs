//! wasi:logging: lines on a guest's standard error, with the level and the context in front.

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};
use wasmtime_wasi::cli::WasiCliView;
use wasmtime_wasi::p2::StreamError;
use wasmtime_wasi::p2::bindings::cli::stderr::Host as _;

use crate::guest::Guest;

const LOGGING: [&str; 2] = ["wasi:logging/logging@0.1.0-draft", "wasi:logging/logging"];
/// Longest line, in bytes; the rest of it is left out.
const MAX_LINE: usize = 16 << 10;

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the guest makes them")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

pub(crate) fn add_to(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for name in LOGGING {
        linker
            .instance(name)?
            .func_wrap_async("log", |store, args: (Level, String, String)| Box::new(log(store, args)))?;
    }
    Ok(())
}

async fn log(
    mut store: StoreContextMut<'_, Guest>,
    (level, context, message): (Level, String, String),
) -> wasmtime::Result<()> {
    let mut rest = Bytes::from(line(level, &context, &message));
    let mut cli = store.data_mut().cli();
    let stderr = cli.get_stderr()?;
    // A guest that fills its log waits here, as it does when it prints.
    while !rest.is_empty() {
        let stream = cli.table.get_mut(&stderr)?;
        let written = match stream.write_ready().await {
            Ok(room) => stream.write(rest.split_to(room.min(rest.len()))),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {}
            Err(StreamError::Closed) => break,
            Err(error) => return Err(error.into()),
        }
    }
    cli.table.delete(stderr)?;
    Ok(())
}

/// One line, whatever the guest says.
fn line(level: Level, context: &str, message: &str) -> String {
    let context = if context.is_empty() { String::new() } else { format!("{context}: ") };
    let mut line = format!("{} {context}{message}", level.name()).replace(['\n', '\r'], " ");
    line.truncate(line.floor_char_boundary(MAX_LINE));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(line(Level::Info, "", "hello"), "info hello\n");
        assert_eq!(line(Level::Error, "db", "two\nlines"), "error db: two lines\n");
        assert_eq!(line(Level::Warn, "", &"x".repeat(MAX_LINE)).len(), MAX_LINE + 1);
    }
}
