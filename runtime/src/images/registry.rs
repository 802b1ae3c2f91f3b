//! Talks to registries.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use oci_client::Reference;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError as Failure};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, OciManifest,
};
use oci_client::secrets::RegistryAuth;
use sha2::{Digest, Sha256};

use super::inspect::{Outline, outline};
use super::layout::{self, Content, Layout, PlatformConfig};
use super::store::{Incoming, Store};
use super::trees::{Tree, Trees};
use super::unpack::Unpacker;
use super::{Auth, Image, ImageConfig, archive};
use crate::error::PullError;
use crate::prepare::digest_of;
use crate::settings::Settings;

/// Manifests that are understood.
const MANIFESTS: &[&str] = &[
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];
/// Longest wait for a connection to a registry, and for the next bytes of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Rests before a blob that broke off is taken up again; after the last it is given up.
const RESTS: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];
/// Most bytes of a manifest or config.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Most layers of an image whose files are wanted.
const MAX_LAYERS: usize = 256;

/// What an image is wanted for: it decides which platform's.
#[derive(Clone, Copy)]
enum Purpose {
    Program,
    Files,
}

pub(super) struct Registry {
    plain_http: Vec<String>,
    mirrors: Vec<(String, String)>,
    max_layer: u64,
    max_program: u64,
    max_tree: u64,
    timeout: Duration,
}

impl Registry {
    pub(super) fn new(settings: &Settings) -> Self {
        // The HTTP client takes the process's TLS provider; whoever set one before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            plain_http: settings.plain_http_registries.clone(),
            mirrors: settings.mirrors.clone(),
            max_layer: settings.max_layer_bytes,
            max_program: settings.max_program_bytes,
            max_tree: settings.max_tree_bytes,
            timeout: settings.pull_timeout,
        }
    }

    pub(super) async fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        credentials: Option<Auth>,
    ) -> Result<Arc<Image>, PullError> {
        let mut outcome = Err(PullError::NotFound { reference: reference.whole() });
        for (at, auth) in self.ways(reference, credentials) {
            let session = self.session(&at, auth);
            outcome = self.limited(&at, Box::pin(session.pull(store))).await;
            if is_answer(&outcome) {
                break;
            }
        }
        outcome.map(Arc::new)
    }

    pub(super) async fn pull_tree(
        &self,
        store: &Store,
        trees: &Trees,
        reference: &Reference,
        credentials: Option<Auth>,
    ) -> Result<Arc<Tree>, PullError> {
        let mut outcome = Err(PullError::NotFound { reference: reference.whole() });
        for (at, auth) in self.ways(reference, credentials) {
            let session = self.session(&at, auth);
            outcome = self.limited(&at, Box::pin(session.pull_tree(store, trees))).await;
            if is_answer(&outcome) {
                break;
            }
        }
        outcome.map(Arc::new)
    }

    /// Where an image is looked for: the mirrors of its registry, which are shown no credentials, and then
    /// the registry itself.
    fn ways(&self, reference: &Reference, credentials: Option<Auth>) -> Vec<(Reference, Option<Auth>)> {
        let mirrors = self.mirrors.iter().filter(|(of, _)| of == reference.registry());
        let mirrors = mirrors.map(|(_, mirror)| {
            let mut there = reference.clone();
            there.set_mirror_registry(mirror.clone());
            (there, None)
        });
        mirrors.chain([(reference.clone(), credentials)]).collect()
    }

    /// The work is in a box: with all it calls it is too large for a thread's stack.
    async fn limited<T>(
        &self,
        reference: &Reference,
        work: Pin<Box<impl Future<Output = Result<T, PullError>>>>,
    ) -> Result<T, PullError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(PullError::TimedOut { reference: reference.whole(), limit: self.timeout }),
        }
    }

    pub(super) async fn push(
        &self,
        reference: &Reference,
        wasm: Bytes,
        annotations: BTreeMap<String, String>,
        credentials: Option<Auth>,
    ) -> Result<String, PullError> {
        let session = self.session(reference, credentials);
        self.limited(reference, Box::pin(session.push(wasm, annotations))).await
    }

    /// A client of its own for every pull: it remembers credentials by registry, and those of one image
    /// must not open another.
    fn session<'a>(&'a self, reference: &'a Reference, credentials: Option<Auth>) -> Session<'a> {
        let plain = self.is_plain(reference.resolve_registry());
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("wasmk/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let auth = match credentials {
            None => RegistryAuth::Anonymous,
            Some(Auth::Basic { username, password }) => RegistryAuth::Basic(username, password),
            Some(Auth::Bearer(token)) => RegistryAuth::Bearer(token),
        };
        Session { registry: self, client: oci_client::Client::new(config), reference, auth }
    }

    fn is_plain(&self, registry: &str) -> bool {
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => registry,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let listed = |name: &String| name == registry || name == host;
        host == "localhost"
            || address.is_ok_and(|address| address.is_loopback())
            || self.plain_http.iter().any(listed)
    }
}

/// Whether nothing else would be found elsewhere.
fn is_answer<T>(outcome: &Result<T, PullError>) -> bool {
    matches!(outcome, Ok(_) | Err(PullError::NotWasm { .. } | PullError::MissingImport { .. }))
}

struct Session<'a> {
    registry: &'a Registry,
    client: oci_client::Client,
    reference: &'a Reference,
    auth: RegistryAuth,
}

impl Session<'_> {
    async fn pull(&self, store: &Store) -> Result<Image, PullError> {
        let (manifest, digest) = self.manifest(Purpose::Program).await?;
        let (layer, config) = match layout::find(&manifest) {
            Layout::Layer(layer) => (layer, ImageConfig::default()),
            Layout::Archives(layers) => return self.pull_archives(store, &manifest, digest, &layers).await,
            Layout::NotWasm(media_types) => return Err(self.not_wasm(media_types)),
            Layout::Malformed(message) => return Err(self.malformed(message)),
        };
        let size = self.size(layer, self.registry.max_program)?;
        let content = if store.has(&layer.digest, size) {
            None
        } else {
            Some(self.linkable(self.download(store, layer, size).await?).await?)
        };
        let image = self.image(&manifest, digest, layer.digest.clone(), size, config);
        Ok(store.keep(content, image)?)
    }

    /// Content on its way in, unless it is a program with an import that is not offered. What is no program at all
    /// is found out when it is prepared.
    async fn linkable(&self, content: Incoming) -> Result<Incoming, PullError> {
        let work = tokio::task::spawn_blocking(move || {
            let missing = outline(&std::fs::read(&content.path)?).ok().and_then(Outline::missing);
            Ok::<_, std::io::Error>((content, missing))
        });
        match work.await.map_err(|error| self.malformed(error.to_string()))?? {
            (content, None) => Ok(content),
            (_, Some(interface)) => {
                Err(PullError::MissingImport { reference: self.reference.whole(), interface })
            }
        }
    }

    async fn pull_tree(&self, store: &Store, trees: &Trees) -> Result<Tree, PullError> {
        let whole = self.reference.whole();
        let (manifest, digest) = self.manifest(Purpose::Files).await?;
        if let Some(tree) = trees.name(&whole, &digest)? {
            return Ok(tree);
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(self.malformed(format!("it has more than {MAX_LAYERS} layers")));
        }
        let (fresh, room) = trees.fresh(self.registry.max_tree)?;
        let mut unpacker = Unpacker::new(fresh.root(), room);
        for layer in &manifest.layers {
            let content = layout::content(&manifest, layer);
            if content == Content::Unknown {
                let message = format!("layers of media type {} cannot be unpacked", layer.media_type);
                return Err(self.malformed(message));
            }
            let size = self.size(layer, self.registry.max_layer.min(room))?;
            let blob = self.download(store, layer, size).await?;
            unpacker = self.unpack(unpacker, blob, content, &layer.digest).await?;
        }
        let size = unpacker.size();
        Ok(trees.keep(fresh, &whole, &digest, size)?)
    }

    async fn unpack(
        &self,
        mut unpacker: Unpacker,
        blob: Incoming,
        content: Content,
        digest: &str,
    ) -> Result<Unpacker, PullError> {
        let work = tokio::task::spawn_blocking(move || {
            match content {
                Content::File(name) => unpacker.file(&name, &blob.path)?,
                _ => unpacker.layer(std::fs::File::open(&blob.path)?)?,
            }
            Ok::<_, std::io::Error>(unpacker)
        });
        match work.await {
            Ok(Ok(unpacker)) => Ok(unpacker),
            Ok(Err(error)) => Err(self.malformed(format!("layer {digest}: {error}"))),
            Err(error) => Err(self.malformed(error.to_string())),
        }
    }

    /// The image's manifest and its digest; of an index, that of the platform it is wanted for.
    async fn manifest(&self, purpose: Purpose) -> Result<(OciImageManifest, String), PullError> {
        let (manifest, digest) = self.document(self.reference).await?;
        let entries = match manifest {
            OciManifest::Image(manifest) => return Ok((manifest, digest)),
            OciManifest::ImageIndex(index) => index.manifests,
        };
        let entry = match purpose {
            Purpose::Program => layout::choose(&entries).map_err(|platforms| self.not_wasm(platforms))?,
            Purpose::Files => layout::choose_files(&entries).map_err(|platforms| {
                self.malformed(format!("it is for other platforms only: {}", platforms.join(", ")))
            })?,
        };
        let reference = self.reference.clone_with_digest(entry.digest.clone());
        match self.document(&reference).await? {
            (OciManifest::Image(manifest), digest) => Ok((manifest, digest)),
            (OciManifest::ImageIndex(_), _) => Err(self.malformed("its index names another index".into())),
        }
    }

    async fn document(&self, reference: &Reference) -> Result<(OciManifest, String), PullError> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, MANIFESTS).await;
        let (bytes, _) = pulled.map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(self.too_large("manifest", MAX_DOCUMENT));
        }
        let actual = digest_of(&bytes);
        match reference.digest() {
            Some(expected) if expected != actual => Err(PullError::Digest {
                reference: self.reference.whole(),
                expected: expected.to_owned(),
                actual,
            }),
            _ => {
                let manifest = serde_json::from_slice(&bytes)
                    .map_err(|error| self.malformed(format!("its manifest is not understood: {error}")))?;
                Ok((manifest, actual))
            }
        }
    }

    /// An image of a Wasm platform whose program is a file in an archive.
    async fn pull_archives(
        &self,
        store: &Store,
        manifest: &OciImageManifest,
        digest: String,
        layers: &[&OciDescriptor],
    ) -> Result<Image, PullError> {
        let size = self.size(&manifest.config, MAX_DOCUMENT)?;
        let config = self.download(store, &manifest.config, size).await?;
        let config: PlatformConfig = serde_json::from_slice(&std::fs::read(&config.path)?)
            .map_err(|error| self.malformed(format!("its config is not understood: {error}")))?;
        if !config.is_wasm() {
            let types = layers.iter().map(|layer| layer.media_type.clone());
            return Err(self.not_wasm(types.chain([format!("platform {}", config.platform())]).collect()));
        }
        let mut found = None;
        for layer in layers {
            let size = self.size(layer, self.registry.max_layer)?;
            let archive = self.download(store, layer, size).await?;
            if let Some(file) = self.extract(store, archive, config.program()).await? {
                // A later layer covers an earlier one.
                found = Some(file);
            }
        }
        let (content, module, size) =
            found.ok_or_else(|| self.malformed("its layers hold no .wasm file".into()))?;
        let content = self.linkable(content).await?;
        let image = self.image(manifest, digest, module, size, config.into_config());
        Ok(store.keep(Some(content), image)?)
    }

    async fn extract(
        &self,
        store: &Store,
        archive: Incoming,
        program: Option<&str>,
    ) -> Result<Option<(Incoming, String, u64)>, PullError> {
        let limit = self.registry.max_program;
        let program = program.map(str::to_owned);
        let mut file = store.incoming()?;
        let work = tokio::task::spawn_blocking(move || {
            let source = std::fs::File::open(&archive.path)?;
            let found = archive::extract(source, program.as_deref(), limit, &mut file.file)?;
            let digest = found.map(|_| std::fs::read(&file.path).map(|wasm| digest_of(&wasm))).transpose()?;
            Ok::<_, std::io::Error>(found.zip(digest).map(|(size, digest)| (file, digest, size)))
        });
        match work.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(self.malformed(format!("a layer's archive: {error}"))),
            Err(error) => Err(self.malformed(error.to_string())),
        }
    }

    fn image(
        &self,
        manifest: &OciImageManifest,
        digest: String,
        module_digest: String,
        module_size: u64,
        config: ImageConfig,
    ) -> Image {
        Image {
            reference: self.reference.whole(),
            digest,
            module_digest,
            module_size,
            annotations: manifest.annotations.clone().unwrap_or_default(),
            config,
            module_path: std::path::PathBuf::new(),
        }
    }

    fn size(&self, descriptor: &OciDescriptor, limit: u64) -> Result<u64, PullError> {
        match u64::try_from(descriptor.size) {
            Ok(size) if size <= limit => Ok(size),
            Ok(_) => Err(self.too_large(&descriptor.media_type, limit)),
            Err(_) => Err(self.malformed(format!("size of {} is {}", descriptor.digest, descriptor.size))),
        }
    }

    /// Fetches a blob of exactly `size` bytes. One that breaks off is taken up where it ended.
    async fn download(
        &self,
        store: &Store,
        descriptor: &OciDescriptor,
        size: u64,
    ) -> Result<Incoming, PullError> {
        let mut incoming = store.incoming()?;
        let mut arrived = Arrived::new(&mut incoming.file, size);
        for rest in RESTS.iter().map(Some).chain([None]) {
            match (Box::pin(self.fetch(descriptor, &mut arrived)).await, rest) {
                (Ok(()), _) => break,
                (Err(Broken { error, again: true }), Some(rest)) if arrived.length > 0 => {
                    let at = arrived.length;
                    tracing::debug!(digest = descriptor.digest, at, %error, "a pull broke off and is resumed");
                    tokio::time::sleep(*rest).await;
                }
                (Err(broken), _) => return Err(broken.error),
            }
        }
        let actual = arrived.digest();
        if actual != descriptor.digest {
            let (reference, expected) = (self.reference.whole(), descriptor.digest.clone());
            return Err(PullError::Digest { reference, expected, actual });
        }
        Ok(incoming)
    }

    /// Fetches what of a blob has not arrived yet.
    async fn fetch(&self, descriptor: &OciDescriptor, arrived: &mut Arrived<'_>) -> Result<(), Broken> {
        let answer = match arrived.length {
            0 => self.client.pull_blob_stream(self.reference, descriptor).await.map(BlobResponse::Full),
            from => self.client.pull_blob_stream_partial(self.reference, descriptor, from, None).await,
        };
        let answer = answer.map_err(|error| {
            let again = matches!(error, Failure::RequestError(_));
            Broken { again, error: self.failed(error) }
        })?;
        let refused = |error: PullError| Broken { again: false, error };
        let mut stream = match answer {
            BlobResponse::Partial(stream) => stream.stream,
            BlobResponse::Full(stream) => {
                // Also when the registry cannot begin in the middle.
                arrived.restart().map_err(|error| refused(error.into()))?;
                stream.stream
            }
        };
        while let Some(bytes) = stream.next().await {
            match bytes {
                Ok(bytes) => arrived.write(&bytes).map_err(|error| refused(self.stored(error)))?,
                // What arrived is looked at as a whole.
                Err(error) if is_digest(&error) => return Ok(()),
                Err(error) => {
                    let (reference, message) = (self.reference.whole(), chain(&error));
                    return Err(Broken { again: true, error: PullError::Registry { reference, message } });
                }
            }
        }
        Ok(())
    }

    /// More than was promised is the registry's fault; anything else is the disk's.
    fn stored(&self, error: std::io::Error) -> PullError {
        match error.kind() {
            std::io::ErrorKind::InvalidData => {
                PullError::Registry { reference: self.reference.whole(), message: error.to_string() }
            }
            _ => error.into(),
        }
    }

    async fn push(&self, wasm: Bytes, annotations: BTreeMap<String, String>) -> Result<String, PullError> {
        let outline = outline(&wasm).map_err(|error| self.malformed(format!("not WebAssembly: {error}")))?;
        let failed = |error| self.failed(error);
        let (layer, layer_size) = (digest_of(&wasm), wasm.len());
        let config = Bytes::from(config(&outline, &layer).to_string());
        let (config_digest, config_size) = (digest_of(&config), config.len());
        self.client
            .auth(self.reference, &self.auth, oci_client::RegistryOperation::Push)
            .await
            .map_err(failed)?;
        self.client.push_blob(self.reference, wasm, &layer).await.map_err(failed)?;
        self.client.push_blob(self.reference, config, &config_digest).await.map_err(failed)?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": {"mediaType": layout::CONFIG, "digest": config_digest, "size": config_size},
            "layers": [{"mediaType": layout::LAYER, "digest": layer, "size": layer_size}],
            "annotations": annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = digest_of(&manifest);
        let kind = http::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        self.client.push_manifest_raw(self.reference, manifest, kind).await.map_err(failed)?;
        Ok(digest)
    }

    fn not_wasm(&self, media_types: Vec<String>) -> PullError {
        PullError::NotWasm { reference: self.reference.whole(), media_types }
    }

    fn malformed(&self, message: String) -> PullError {
        PullError::Malformed { reference: self.reference.whole(), message }
    }

    fn too_large(&self, what: &str, limit: u64) -> PullError {
        PullError::TooLarge { reference: self.reference.whole(), what: what.to_owned(), limit }
    }

    fn failed(&self, error: Failure) -> PullError {
        let reference = self.reference.whole();
        match error {
            Failure::ImageManifestNotFoundError(_) | Failure::ServerError { code: 404, .. } => {
                PullError::NotFound { reference }
            }
            Failure::UnauthorizedError { url } => PullError::Unauthorized { reference, message: url },
            Failure::AuthenticationFailure(message) => PullError::Unauthorized { reference, message },
            Failure::RegistryError { envelope, url } => registry_error(reference, &envelope, &url),
            Failure::DigestError(DigestError::VerificationError { expected, actual }) => {
                PullError::Digest { reference, expected, actual }
            }
            other => PullError::Registry { reference, message: chain(&other) },
        }
    }
}

fn registry_error(reference: String, envelope: &oci_client::errors::OciEnvelope, url: &str) -> PullError {
    use oci_client::errors::OciErrorCode as Code;
    let has = |code: fn(&Code) -> bool| envelope.errors.iter().any(|error| code(&error.code));
    if has(|code| {
        matches!(code, Code::ManifestUnknown | Code::NameUnknown | Code::BlobUnknown | Code::NotFound)
    }) {
        return PullError::NotFound { reference };
    }
    let message = format!("{url}: {envelope}");
    if has(|code| matches!(code, Code::Unauthorized | Code::Denied)) {
        return PullError::Unauthorized { reference, message };
    }
    PullError::Registry { reference, message }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The config of an image made here. It has no time in it, so that equal programs are equal images.
fn config(outline: &Outline, layer: &str) -> serde_json::Value {
    let mut config = serde_json::json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": if matches!(outline, Outline::Module { .. }) { "wasip1" } else { "wasip2" },
        "layerDigests": [layer],
    });
    if let Outline::Component { imports, exports } = outline {
        config["component"] = serde_json::json!({"exports": exports, "imports": imports, "target": null});
    }
    config
}

/// Whether a stream ended because its content is not what was asked for.
fn is_digest(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<DigestError>())
}

/// A part of a blob that did not arrive.
struct Broken {
    error: PullError,
    /// The rest may still be had.
    again: bool,
}

/// What of a blob has arrived; blobs go to a local file, so writing does not wait.
struct Arrived<'a> {
    file: &'a mut std::fs::File,
    hash: Sha256,
    length: u64,
    size: u64,
}

impl<'a> Arrived<'a> {
    fn new(file: &'a mut std::fs::File, size: u64) -> Self {
        Self { file, hash: Sha256::new(), length: 0, size }
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.length += bytes.len() as u64;
        if self.length > self.size {
            let text = "blob is larger than its manifest says";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
        }
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hash.clone().finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_left_out_only_where_allowed() {
        let mut settings = Settings::new("unused");
        settings.plain_http_registries = vec!["registry.local".into(), "10.0.0.9:5000".into()];
        let registry = Registry::new(&settings);
        let check = |name: &str, expect: bool| assert_eq!(registry.is_plain(name), expect, "{name}");
        check("localhost:5000", true);
        check("127.0.0.1:5000", true);
        check("127.43.0.7", true);
        check("[::1]:5000", true);
        check("registry.local", true);
        check("registry.local:8080", true);
        check("10.0.0.9:5000", true);
        check("10.0.0.9:5001", false);
        check("ghcr.io", false);
        check("localhost.example.com", false);
    }
}
