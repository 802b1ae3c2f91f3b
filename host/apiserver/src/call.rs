//! One request on its way through the server.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Method};
use parking_lot::Mutex;
use wasmk_api::Status;

use crate::{
    admission::Asker,
    auth::User,
    http::{Query, RequestInfo, Wanted},
    server::Core,
};

/// What handlers know of a request.
pub(crate) struct Call {
    /// What it asks for.
    pub(crate) info: RequestInfo,
    /// Its method.
    pub(crate) method: Method,
    /// Its query.
    pub(crate) query: Query,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Who makes it.
    pub(crate) user: Arc<User>,
    /// How the answer is to be written.
    pub(crate) wanted: Wanted,
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<Vec<(String, String)>>,
    asker: OnceLock<Arc<Asker>>,
}

/// Most warnings one answer carries.
const MAX_WARNINGS: usize = 64;
/// Most annotations handlers add to one request's audit events.
const MAX_ANNOTATIONS: usize = 128;

impl Call {
    /// From its parts.
    pub(crate) fn new(
        info: RequestInfo,
        method: Method,
        query: Query,
        headers: HeaderMap,
        user: Arc<User>,
        wanted: Wanted,
    ) -> Self {
        Self {
            info,
            method,
            query,
            headers,
            user,
            wanted,
            warnings: Mutex::default(),
            annotations: Mutex::default(),
            asker: OnceLock::new(),
        }
    }

    /// Who answers what expressions ask of the authorizers.
    pub(crate) fn asker(&self, core: &Arc<Core>) -> &Arc<Asker> {
        self.asker.get_or_init(|| Asker::new(core, &self.user))
    }

    /// Adds a `Warning` header to the answer, once.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Takes the warnings.
    pub(crate) fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    /// Adds an annotation to the request's audit events; the first of a key stays.
    pub(crate) fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let key = key.into();
        let mut annotations = self.annotations.lock();
        if annotations.len() < MAX_ANNOTATIONS && annotations.iter().all(|(known, _)| *known != key) {
            annotations.push((key, value.into()));
        }
    }

    /// Takes the annotations.
    pub(crate) fn annotations(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.annotations.lock())
    }

    /// The name of the field manager: as given, or what comes before the slash in the user agent.
    pub(crate) fn field_manager(&self) -> String {
        match self.query.text("fieldManager") {
            "" => {
                let agent =
                    self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
                let name = agent.split('/').next().unwrap_or("");
                let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
                if name.is_empty() { "unknown".into() } else { name }
            }
            given => given.into(),
        }
    }

    /// Whether nothing is to be stored.
    ///
    /// # Errors
    /// When `dryRun` is neither `All` nor empty.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        let mut dry = false;
        for value in self.query.all("dryRun") {
            match value {
                "All" => dry = true,
                "" => {}
                odd => return Err(bad_dry_run(odd, self.options_kind())),
            }
        }
        Ok(dry)
    }

    /// The kind of the options that the request's verb reads from its query.
    pub(crate) fn options_kind(&self) -> &'static str {
        match self.info.verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        }
    }
}

/// The refusal of a `dryRun` value.
pub(crate) fn bad_dry_run(value: &str, options: &str) -> Status {
    Status::invalid(
        &wasmk_api::GroupKind { group: "meta.k8s.io".into(), kind: options.into() },
        "",
        &[wasmk_api::Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {value:?}: supported values: \"All\""),
            field: "dryRun".into(),
        }],
    )
}
