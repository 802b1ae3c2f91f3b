use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>, Error> {
    let target = std::env::var("TARGET").unwrap_or_else(|_| "world".into());
    Ok(Response::new(format!("hello {target}\n").into()))
}
