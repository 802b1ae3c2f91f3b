//! Requests to handlers by method and path.

use crate::{IntoResponse, Request, Response};

type Handler = Box<dyn Fn(Request, &Params) -> Response>;

/// Sends each request to the handler of its method and path; what fits none is status 404, and 405 where only the
/// method does not fit.
///
/// ```
/// use wasmk_guest::{Request, Router};
///
/// let router = Router::new()
///     .get("/", |_, _| "home\n")
///     .get("/users/{id}", |_, params| format!("user {}\n", &params["id"]))
///     .post("/files/{*path}", |_, params| format!("stored {}\n", &params["path"]));
/// assert_eq!(router.handle(Request::of("GET", "/users/7?x=y")).status(), 200);
/// assert_eq!(router.handle(Request::of("GET", "/files/a/b")).status(), 405);
/// assert_eq!(router.handle(Request::of("GET", "/nowhere")).status(), 404);
/// ```
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
}

struct Route {
    method: String,
    pattern: Vec<Part>,
    handler: Handler,
}

enum Part {
    Text(String),
    /// `{name}`: one part of the path.
    One(String),
    /// `{*name}`: the rest of the path.
    Rest(String),
}

/// What a path's pattern left open, by name. Indexing by an unknown name gives an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// The value of a name of the pattern.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of a name, as a number or anything else that text can be.
    ///
    /// # Errors
    /// With status 400, for [`Router`] to answer with, when it is not of that form.
    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, Response> {
        let text = &self[name];
        let wrong =
            || Response::text(format!("{name}: {text:?} is not of the form expected\n")).with_status(400);
        text.parse().map_err(|_| wrong())
    }
}

impl std::ops::Index<&str> for Params {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }
}

impl Router {
    /// Without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler of a method for paths of a pattern. Earlier ones come first.
    pub fn route<R: IntoResponse>(
        mut self,
        method: &str,
        pattern: &str,
        handler: impl Fn(Request, &Params) -> R + 'static,
    ) -> Self {
        self.routes.push(Route {
            method: method.to_ascii_uppercase(),
            pattern: parts(pattern).map(Part::read).collect(),
            handler: Box::new(move |request, params| handler(request, params).into_response()),
        });
        self
    }

    /// Adds a handler of GET.
    pub fn get<R: IntoResponse>(
        self,
        pattern: &str,
        handler: impl Fn(Request, &Params) -> R + 'static,
    ) -> Self {
        self.route("GET", pattern, handler)
    }

    /// Adds a handler of POST.
    pub fn post<R: IntoResponse>(
        self,
        pattern: &str,
        handler: impl Fn(Request, &Params) -> R + 'static,
    ) -> Self {
        self.route("POST", pattern, handler)
    }

    /// Adds a handler of PUT.
    pub fn put<R: IntoResponse>(
        self,
        pattern: &str,
        handler: impl Fn(Request, &Params) -> R + 'static,
    ) -> Self {
        self.route("PUT", pattern, handler)
    }

    /// Adds a handler of DELETE.
    pub fn delete<R: IntoResponse>(
        self,
        pattern: &str,
        handler: impl Fn(Request, &Params) -> R + 'static,
    ) -> Self {
        self.route("DELETE", pattern, handler)
    }

    /// Answers a request.
    pub fn handle(&self, request: Request) -> Response {
        let mut allowed: Vec<&str> = Vec::new();
        let path = request.path().to_owned();
        for route in &self.routes {
            let Some(params) = fit(&route.pattern, &path) else { continue };
            if route.method == request.method() {
                return (route.handler)(request, &params);
            }
            allowed.push(&route.method);
        }
        if allowed.is_empty() {
            return Response::text("not found\n").with_status(404);
        }
        Response::text("method not allowed\n").with_status(405).with_header("allow", &allowed.join(", "))
    }
}

impl Part {
    fn read(text: &str) -> Self {
        match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(name) => match name.strip_prefix('*') {
                Some(rest) => Self::Rest(rest.to_owned()),
                None => Self::One(name.to_owned()),
            },
            None => Self::Text(text.to_owned()),
        }
    }
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

fn fit(pattern: &[Part], path: &str) -> Option<Params> {
    let (mut params, mut rest) = (Params::default(), parts(path));
    for part in pattern {
        match part {
            Part::Text(text) => {
                rest.next().filter(|have| have == text)?;
            }
            Part::One(name) => params.0.push((name.clone(), rest.next()?.to_owned())),
            Part::Rest(name) => {
                let all: Vec<&str> = rest.by_ref().collect();
                params.0.push((name.clone(), all.join("/")));
            }
        }
    }
    rest.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_their_patterns() {
        let check = |pattern: &str, path: &str, expected: Option<&[(&str, &str)]>| {
            let pattern: Vec<Part> = parts(pattern).map(Part::read).collect();
            let expected = expected
                .map(|all| Params(all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()));
            assert_eq!(fit(&pattern, path), expected, "{path}");
        };
        check("/", "/", Some(&[]));
        check("/a/b", "/a/b/", Some(&[]));
        check("/a/b", "/a", None);
        check("/a", "/a/b", None);
        check("/a/{b}/c", "/a/x/c", Some(&[("b", "x")]));
        check("/f/{*rest}", "/f/x/y", Some(&[("rest", "x/y")]));
        check("/f/{*rest}", "/f", Some(&[("rest", "")]));
    }

    #[test]
    fn the_other_methods_are_named() {
        let router = Router::new().get("/a", |_, _| "").post("/a", |_, _| "");
        let response = router.handle(Request::of("PUT", "/a"));
        assert_eq!((response.status(), response.headers().get("allow")), (405, Some("GET, POST")));
    }

    #[test]
    fn parameters_are_parsed_or_refused() {
        let params = Params(vec![("id".into(), "7".into()), ("name".into(), "x".into())]);
        assert_eq!(params.parse::<u32>("id").ok(), Some(7));
        assert_eq!(params.parse::<u32>("name").err().map(|r| r.status()), Some(400));
    }
}
