//! HTTP functions in a few lines.
//!
//! A function takes a [`Request`] and gives a [`Response`]; [`serve!`] makes it the entry point of a
//! `wasi:http` component. In a crate with `crate-type = ["cdylib"]`:
//!
//! ```
//! use wasmk_guest::{Request, Response, env};
//!
//! wasmk_guest::serve!(hello);
//!
//! fn hello(request: Request) -> Response {
//!     let target = env("TARGET").unwrap_or_else(|| "world".into());
//!     Response::text(format!("hello {target} at {}\n", request.path()))
//! }
//! ```
//!
//! A [`Router`] sends requests to several functions; with the feature `json`, bodies are read and written as any
//! type that serde knows. With the feature `keyvalue`, `keyvalue::Store` keeps what is to outlive a request; with the feature
//! `blobstore`, `blobstore::Container` keeps objects, which may be longer.
//!
//! Each request has an instance of its own unless the function's deployment says otherwise: statics start
//! fresh every time. Files, arguments, time and random numbers are those of `std`.

#[cfg(feature = "blobstore")]
pub mod blobstore;
mod body;
mod fetch;
mod headers;
#[cfg(feature = "keyvalue")]
pub mod keyvalue;
mod log;
mod request;
mod response;
mod router;
mod serve;

pub use body::{BodyReader, BodyWriter};
pub use fetch::{Fetched, fetch};
pub use headers::Headers;
pub use log::{Level, log};
pub use request::Request;
pub use response::{IntoResponse, Response};
pub use router::{Params, Router};

#[doc(hidden)]
pub use serve::serve as __serve;
#[doc(hidden)]
pub use wasip2;

/// The value of an environment variable, if it is set and UTF-8.
///
/// ```
/// assert_eq!(wasmk_guest::env("SURELY_NOT_SET"), None);
/// ```
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The value of an environment variable that the function cannot do without, for instance one that its deployment
/// takes from a Secret (`wasmk fn deploy --env-from secret:NAME`).
///
/// ```
/// assert_eq!(wasmk_guest::need("SURELY_NOT_SET").unwrap_err().to_string(), "SURELY_NOT_SET is not set");
/// ```
///
/// # Errors
/// When it is not set, or empty.
pub fn need(name: &str) -> Result<String, std::io::Error> {
    let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("{name} is not set"));
    env(name).filter(|value| !value.is_empty()).ok_or_else(missing)
}

/// Makes a function the component's entry point. It takes a [`Request`] and gives anything that is
/// [`IntoResponse`]: a [`Response`], a string, or a `Result` whose error becomes status 500.
///
/// ```
/// # use wasmk_guest::Request;
/// wasmk_guest::serve!(|request: Request| format!("you said {}", request.method()));
/// ```
#[macro_export]
macro_rules! serve {
    ($function:expr) => {
        struct WasmkFunction;
        impl $crate::wasip2::exports::http::incoming_handler::Guest for WasmkFunction {
            fn handle(
                request: $crate::wasip2::http::types::IncomingRequest,
                response: $crate::wasip2::http::types::ResponseOutparam,
            ) {
                $crate::__serve(request, response, $function)
            }
        }
        $crate::wasip2::http::proxy::export!(WasmkFunction with_types_in $crate::wasip2);
    };
}

/// Declares that an instance may serve that many requests, one after another: what one request leaves in
/// statics, files or memory does no harm to the next. It takes effect for functions that ask for it
/// (`wasmk fn deploy --reuse`); the number is written in plain digits.
///
/// ```
/// wasmk_guest::reusable!(1000);
/// ```
#[macro_export]
macro_rules! reusable {
    ($most:literal) => {
        const _: () = {
            const TEXT: &[u8] = ::core::stringify!($most).as_bytes();
            #[cfg_attr(target_family = "wasm", unsafe(link_section = "wasmk:instance-reuse"))]
            #[used]
            static DECLARED: [u8; TEXT.len()] = match TEXT.first_chunk() {
                Some(text) => *text,
                None => [0; TEXT.len()],
            };
        };
    };
}
