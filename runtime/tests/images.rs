//! Images are pulled in every layout of Wasm, checked, kept once, and pushed.

mod common;

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use common::registry::Registry;
use common::{Fixture, HELLO, command, component, digest, fixture, fixture_with, http_guest, settings, soon};
use serde_json::{Value, json};
use wasmk_runtime::{Auth, Image, ProgramKind, PullError, PullPolicy, Runtime, Spec, StopSignal};

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn wasm() -> Vec<u8> {
    wat::parse_str(command("(call $exit (i32.const 7))")).unwrap()
}

async fn pull(
    fixture: &Fixture,
    registry: &Registry,
    name: &str,
) -> Result<std::sync::Arc<Image>, PullError> {
    soon(fixture.runtime.images().pull(&registry.reference(name), PullPolicy::Always, None)).await
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn what_is_pushed_is_pulled_and_runs() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let reference = registry.reference("team/app:1");
    let wasm = Bytes::from(component(&http_guest(HELLO)));
    let annotations = BTreeMap::from([("org.opencontainers.image.title".to_owned(), "app".to_owned())]);
    let images = fixture.runtime.images();
    let pushed = soon(images.push(&reference, wasm.clone(), annotations.clone(), None)).await.unwrap();
    assert_eq!(soon(images.push(&reference, wasm.clone(), annotations, None)).await.unwrap(), pushed);

    let manifest = registry.stored_manifest("team/app:1");
    assert_eq!(manifest["config"]["mediaType"], CONFIG);
    assert_eq!(manifest["layers"][0]["mediaType"], LAYER);
    let config = registry.stored_blob(manifest["config"]["digest"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["os"], &config["architecture"]), (&json!("wasip2"), &json!("wasm")));
    assert_eq!(config["component"]["exports"], json!(["wasi:http/incoming-handler@0.2.12"]));

    let image = soon(images.pull(&reference, PullPolicy::IfNotPresent, None)).await.unwrap();
    assert_eq!((image.digest(), image.module_digest()), (pushed.as_str(), digest(&wasm).as_str()));
    assert_eq!(image.annotations()["org.opencontainers.image.title"], "app");
    let program = soon(fixture.runtime.prepare(&image)).await.unwrap();
    assert_eq!(program.kind(), ProgramKind::Http);

    let error = soon(images.push(&reference, Bytes::from_static(b"#!/bin/sh"), BTreeMap::new(), None)).await;
    assert!(error.unwrap_err().to_string().contains("not WebAssembly"));
}

#[tokio::test]
async fn every_layout_gives_the_same_program() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let wasm = wasm();
    let files = tar(&[("etc/note", b"x"), ("app.wasm", &wasm)]);
    let run = json!({"Entrypoint": ["/app.wasm"], "Cmd": ["--fast"], "Env": ["A=1"]});
    let platform = json!({"os": "wasip1", "architecture": "wasm", "config": run}).to_string();
    let check = async |name: &str, config: (&str, &str), layers: &[(&str, &[u8])]| {
        let config = registry.blob(config.0, config.1.to_owned());
        let layers: Vec<Value> =
            layers.iter().map(|(kind, bytes)| registry.blob(kind, bytes.to_vec())).collect();
        let manifest = registry.image(name, &config, &layers);
        let image = pull(&fixture, &registry, name).await.unwrap();
        assert_eq!(
            (image.digest(), image.module_digest()),
            (manifest.as_str(), digest(&wasm).as_str()),
            "{name}"
        );
        let program = soon(fixture.runtime.prepare(&image)).await.unwrap();
        assert_eq!(soon(program.run(Spec::default(), StopSignal::new())).await.unwrap().code, 7);
        image
    };
    check("a/cncf:1", (CONFIG, "{}"), &[(LAYER, &wasm)]).await;
    check(
        "a/old:1",
        ("application/vnd.wasm.config.v1+json", "{}"),
        &[("application/vnd.wasm.content.layer.v1+wasm", &wasm)],
    )
    .await;
    check("a/mixed:1", (OCI_CONFIG, "{}"), &[(LAYER, &wasm)]).await;
    check("a/tar:1", (OCI_CONFIG, &platform), &[(TAR, &files)]).await;
    let image = check(
        "a/targz:1",
        (OCI_CONFIG, &platform),
        &[(TAR_GZIP, &gzip(&tar(&[]))), (TAR_GZIP, &gzip(&files))],
    )
    .await;
    let config = image.config();
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..], &config.env[..]),
        (&["/app.wasm".into()][..], &["--fast".into()][..], &["A=1".into()][..])
    );
    assert_eq!(fixture.runtime.metrics().compiled, 1, "five images, one program");
    assert_eq!(fixture.runtime.images().list().await.unwrap().len(), 5);
}

#[tokio::test]
async fn an_index_is_followed_to_its_wasm_platform() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let wasm = wasm();
    let image =
        registry.image("a/b:wasm", &registry.blob(CONFIG, "{}"), &[registry.blob(LAYER, wasm.clone())]);
    let size = registry.stored_manifest("a/b:wasm").to_string().len();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let entry = |os: &str, arch: &str, digest: &str| json!({"mediaType": kind, "digest": digest, "size": size, "platform": {"os": os, "architecture": arch}});
    let index = |entries: Vec<Value>| json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
    registry.manifest(
        "a/b:1",
        &index(vec![entry("linux", "amd64", &digest(b"")), entry("wasip2", "wasm", &image)]),
    );
    assert_eq!(pull(&fixture, &registry, "a/b:1").await.unwrap().module_digest(), digest(&wasm));
    registry.manifest("a/b:2", &index(vec![entry("linux", "amd64", &digest(b""))]));
    let error = pull(&fixture, &registry, "a/b:2").await.unwrap_err();
    assert!(
        matches!(&error, PullError::NotWasm { media_types, .. } if media_types == &["linux/amd64"]),
        "{error}"
    );
}

#[tokio::test]
async fn bad_images_are_refused_by_name() {
    let (fixture, registry) =
        (fixture_with(|settings| settings.max_program_bytes = 10_000), Registry::start().await);
    let config = registry.blob(CONFIG, "{}");
    let check = async |name: &str, expect: &str| {
        let error = pull(&fixture, &registry, name).await.map(drop).unwrap_err().to_string();
        assert!(error.contains(expect), "{name}: {error}");
    };
    check("a/absent:1", "does not exist in its registry").await;

    let linux = registry.blob(OCI_CONFIG, json!({"os": "linux", "architecture": "amd64"}).to_string());
    registry.image("a/linux:1", &linux, &[registry.blob(TAR_GZIP, gzip(&tar(&[("bin/sh", b"x")])))]);
    check(
        "a/linux:1",
        "is not a WebAssembly image: application/vnd.oci.image.layer.v1.tar+gzip, platform linux/amd64",
    )
    .await;
    registry.image(
        "a/helm:1",
        &registry.blob("application/helm", "{}"),
        &[registry.blob("application/chart", "x")],
    );
    check("a/helm:1", "is not a WebAssembly image: application/helm, application/chart").await;

    let wasi = registry.blob(OCI_CONFIG, json!({"os": "wasip1", "architecture": "wasm"}).to_string());
    registry.image("a/empty:1", &wasi, &[registry.blob(TAR, tar(&[("etc/x", b"x")]))]);
    check("a/empty:1", "its layers hold no .wasm file").await;
    registry.image("a/torn:1", &wasi, &[registry.blob(TAR_GZIP, vec![0x1f, 0x8b, 9, 9])]);
    check("a/torn:1", "a layer's archive").await;

    let hammer = wat::parse_str(r#"(component (import "acme:tools/hammer@1.0.0" (instance)))"#).unwrap();
    registry.image("a/hammer:1", &config, &[registry.blob(LAYER, hammer.clone())]);
    check("a/hammer:1", "a/hammer:1 imports acme:tools/hammer@1.0.0, which this runtime does not offer")
        .await;
    registry.image("a/hammers:1", &wasi, &[registry.blob(TAR, tar(&[("app.wasm", &hammer)]))]);
    check("a/hammers:1", "imports acme:tools/hammer@1.0.0").await;
    let magic = wat::parse_str(r#"(module (import "env" "magic" (func)))"#).unwrap();
    registry.image("a/magic:1", &config, &[registry.blob(LAYER, magic)]);
    check("a/magic:1", "imports env::magic").await;

    let layer = registry.blob(LAYER, wasm());
    registry.image("a/changed:1", &config, std::slice::from_ref(&layer));
    let mut changed = wasm();
    *changed.last_mut().unwrap() ^= 1;
    registry.corrupt(&layer, changed);
    check("a/changed:1", "manifest says sha256:").await;
    registry.corrupt(&layer, wasm()[..20].to_vec());
    check("a/changed:1", "manifest says sha256:").await;
    registry.corrupt(&layer, [wasm(), vec![0; 100]].concat());
    check("a/changed:1", "larger than its manifest says").await;

    registry.image("a/large:1", &config, &[registry.blob(LAYER, vec![0; 10_001])]);
    check("a/large:1", "application/wasm is larger than 10000 bytes").await;
    let negative = json!({"mediaType": LAYER, "digest": digest(b""), "size": -1});
    registry.image("a/negative:1", &config, &[negative]);
    check("a/negative:1", "size of sha256").await;
    registry.manifest(
        "a/noise:1",
        &json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": 5}),
    );
    check("a/noise:1", "manifest is not understood").await;
    assert_eq!(fixture.runtime.images().list().await.unwrap(), []);
    let left = std::fs::read_dir(fixture.dir.path().join("images/incoming")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of failed pulls");
}

#[tokio::test]
async fn policies_ask_the_registry_as_they_say() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let reference = registry.reference("a/b:1");
    let images = fixture.runtime.images();
    let config = registry.blob(CONFIG, "{}");
    let old = registry.image("a/b:1", &config, &[registry.blob(LAYER, wasm())]);
    let sent = || {
        let state = registry.state.lock();
        (state.manifests_sent, state.blobs_sent)
    };

    let never = soon(images.pull(&reference, PullPolicy::Never, None)).await.unwrap_err();
    assert!(matches!(never, PullError::NotPresent { .. }) && sent() == (0, 0));
    soon(images.pull(&reference, PullPolicy::IfNotPresent, None)).await.unwrap();
    assert_eq!(sent(), (1, 1));
    soon(images.pull(&reference, PullPolicy::IfNotPresent, None)).await.unwrap();
    soon(images.pull(&reference, PullPolicy::Never, None)).await.unwrap();
    assert_eq!(sent(), (1, 1));
    soon(images.pull(&reference, PullPolicy::Always, None)).await.unwrap();
    assert_eq!(sent(), (2, 1), "what is here is not sent again");

    let new = registry.image("a/b:1", &config, &[registry.blob(LAYER, wat::parse_str(command("")).unwrap())]);
    let here = soon(images.pull(&reference, PullPolicy::IfNotPresent, None)).await.unwrap();
    assert_eq!(here.digest(), old);
    let fresh = soon(images.pull(&reference, PullPolicy::Always, None)).await.unwrap();
    assert_eq!(fresh.digest(), new);
    let pinned = registry.reference(&format!("a/b@{old}"));
    assert_eq!(soon(images.pull(&pinned, PullPolicy::Always, None)).await.unwrap().digest(), old);
    let before = sent();
    soon(images.pull(&pinned, PullPolicy::Always, None)).await.unwrap();
    assert_eq!(sent(), before, "content named by its digest cannot have changed");

    // The store is read again after a restart.
    let again = Runtime::new(settings(fixture.dir.path(), |_| {})).unwrap();
    assert_eq!(again.images().get(&reference).await.unwrap().digest(), new);
    assert!(again.images().remove(&reference).await.unwrap() > 0);
    assert!(again.images().get(&reference).await.is_none());
}

#[tokio::test]
async fn concurrent_pulls_are_one_and_credentials_are_not_shared() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let reference = registry.reference("a/b:1");
    registry.image("a/b:1", &registry.blob(CONFIG, "{}"), &[registry.blob(LAYER, wasm())]);
    let images = fixture.runtime.images();
    let pulls = (0..10).map(|_| images.pull(&reference, PullPolicy::Always, None));
    for image in soon(futures::future::join_all(pulls)).await {
        assert_eq!(image.unwrap().module_digest(), digest(&wasm()));
    }
    assert_eq!(registry.state.lock().blobs_sent, 1);

    registry.state.lock().credentials = Some(("ann".into(), "secret".into()));
    let auth = |password: &str| Some(Auth::Basic { username: "ann".into(), password: password.into() });
    let pull = async |auth| soon(images.pull(&reference, PullPolicy::Always, auth)).await.map(drop);
    pull(auth("secret")).await.unwrap();
    for wrong in [auth("guess"), None] {
        let error = pull(wrong).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    }
    assert!(!format!("{:?}", auth("secret")).contains("secret"));
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let fixture = fixture();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = format!("{address}/a/b:1").parse().unwrap();
    let error = soon(fixture.runtime.images().pull(&reference, PullPolicy::Always, None)).await.unwrap_err();
    assert!(
        matches!(error, PullError::Registry { .. }) && error.to_string().contains(&address.to_string()),
        "{error}"
    );
}

async fn tree(
    fixture: &Fixture,
    registry: &Registry,
    name: &str,
    policy: PullPolicy,
) -> Result<std::sync::Arc<wasmk_runtime::Tree>, PullError> {
    soon(fixture.runtime.images().pull_tree(&registry.reference(name), policy, None)).await
}

#[tokio::test]
async fn files_of_images_and_artifacts_are_unpacked() {
    let (fixture, registry) = (fixture(), Registry::start().await);
    let base = registry.blob(TAR_GZIP, gzip(&tar(&[("etc/a", b"1"), ("etc/b", b"1")])));
    let upper = ruzstd::encoding::compress_to_vec(
        &*tar(&[("etc/.wh.a", b""), ("etc/b", b"2")]),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    let upper = registry.blob(TAR_ZSTD, upper);
    let config = registry.blob(OCI_CONFIG, r#"{"os": "linux", "architecture": "amd64"}"#);
    let first = registry.image("team/data:1", &config, &[base.clone(), upper]);
    let one = tree(&fixture, &registry, "team/data:1", PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(one.digest(), first);
    assert_eq!(std::fs::read(one.path().join("etc/b")).unwrap(), b"2");
    assert!(!one.path().join("etc/a").exists());

    let mut model = registry.blob("application/x-model", "weights");
    model["annotations"] = json!({"org.opencontainers.image.title": "models/a.bin"});
    registry.image("team/model:1", &registry.blob("application/vnd.oci.empty.v1+json", "{}"), &[model]);
    let model = tree(&fixture, &registry, "team/model:1", PullPolicy::Always).await.unwrap();
    assert_eq!(std::fs::read(model.path().join("models/a.bin")).unwrap(), b"weights");

    // A tag that comes to mean something else leaves what is in use as it is.
    let second = registry.image("team/data:1", &config, &[base]);
    let sent = registry.state.lock().blobs_sent;
    let kept = tree(&fixture, &registry, "team/data:1", PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!((kept.digest(), registry.state.lock().blobs_sent), (&*first, sent));
    let (a, b) = tokio::join!(
        tree(&fixture, &registry, "team/data:1", PullPolicy::Always),
        tree(&fixture, &registry, "team/data:1", PullPolicy::Always)
    );
    assert_eq!((a.unwrap().digest(), b.unwrap().digest()), (&*second, &*second));
    assert_eq!(registry.state.lock().blobs_sent, sent + 1, "two pulls of the same are one");
    assert!(one.path().join("etc/b").exists());

    let images = fixture.runtime.images();
    images.remove_tree(&second).await.unwrap();
    let left: Vec<_> = images.list_trees().await.unwrap().iter().map(|t| t.digest().to_owned()).collect();
    assert_eq!(left, [first, model.digest().to_owned()], "one without a name is still listed");
    let never = tree(&fixture, &registry, "team/data:1", PullPolicy::Never).await.unwrap_err();
    assert!(matches!(never, PullError::NotPresent { .. }), "{never}");
}

#[tokio::test]
async fn files_that_harm_are_refused() {
    let fixture = fixture_with(|settings| settings.max_tree_bytes = 100_000);
    let registry = Registry::start().await;
    let config = registry.blob(OCI_CONFIG, "{}");
    let check = async |name: &str, layers: &[Value], expect: &str| {
        registry.image(name, &config, layers);
        let error = tree(&fixture, &registry, name, PullPolicy::Always).await.unwrap_err().to_string();
        assert!(error.contains(expect), "{name}: {error}");
    };
    let bomb = registry.blob(TAR_GZIP, gzip(&tar(&[("zeros", &[0; 1 << 20])])));
    check("bad/bomb:1", &[bomb], "more than the 100000 bytes there is room for").await;
    let sealed = registry.blob("application/vnd.oci.image.layer.v1.tar+encrypted", "x");
    check("bad/sealed:1", &[sealed], "layers of media type application/vnd.oci.image.layer.v1.tar+encrypted")
        .await;
    let good = registry.blob(TAR, tar(&[("a", b"1")]));
    check("bad/many:1", &vec![good.clone(); 257], "more than 256 layers").await;
    registry.corrupt(&good, tar(&[("a", b"2")]));
    check("bad/content:1", &[good], "manifest says").await;
    // Nothing of them stays.
    assert_eq!(fixture.runtime.images().list_trees().await.unwrap(), []);
}

#[tokio::test]
async fn pulls_that_break_off_are_taken_up_where_they_ended() {
    let config = |registry: &Registry| registry.blob(CONFIG, "{}");
    let bytes = component(&http_guest(HELLO));
    for (ranges, resumed) in [(true, vec![100, 250]), (false, vec![])] {
        let (fixture, registry) = (fixture(), Registry::start().await);
        let layer = registry.blob(LAYER, bytes.clone());
        registry.image("a/b:1", &config(&registry), std::slice::from_ref(&layer));
        {
            let mut state = registry.state.lock();
            (state.ranges, state.cut) = (ranges, vec![100, 150]);
        }
        let image = pull(&fixture, &registry, "a/b:1").await.unwrap();
        assert_eq!(std::fs::read(image.module_path()).unwrap(), bytes);
        let state = registry.state.lock();
        assert_eq!((&state.resumed, state.blobs_sent), (&resumed, 3), "ranges: {ranges}");
    }
    // What is put together of two halves is looked at as a whole.
    let (fixture, registry) = (fixture(), Registry::start().await);
    let layer = registry.blob(LAYER, bytes.clone());
    registry.image("a/b:1", &config(&registry), std::slice::from_ref(&layer));
    let mut changed = bytes.clone();
    changed[10] ^= 1;
    registry.corrupt(&layer, changed);
    {
        let mut state = registry.state.lock();
        (state.ranges, state.cut) = (true, vec![100]);
    }
    let error = pull(&fixture, &registry, "a/b:1").await.unwrap_err().to_string();
    assert!(error.contains("manifest says sha256:"), "{error}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_shown_no_credentials() {
    let (mirror, origin) = (Registry::start().await, Registry::start().await);
    let host = |registry: &Registry| registry.reference("a:1").registry().to_owned();
    let mirrors = vec![(host(&origin), "127.0.0.1:9".to_owned()), (host(&origin), host(&mirror))];
    let fixture = fixture_with(|settings| settings.mirrors = mirrors.clone());
    for registry in [&mirror, &origin] {
        registry.image("a/b:1", &registry.blob(CONFIG, "{}"), &[registry.blob(LAYER, wasm())]);
    }
    origin.image("a/c:1", &origin.blob(CONFIG, "{}"), &[origin.blob(LAYER, wasm())]);
    origin.state.lock().credentials = Some(("u".into(), "p".into()));
    let images = fixture.runtime.images();
    let auth = Some(Auth::Basic { username: "u".into(), password: "p".into() });
    let sent = |registry: &Registry| registry.state.lock().manifests_sent;
    for (name, expect) in [("a/b:1", (1, 0)), ("a/c:1", (2, 1))] {
        let reference = origin.reference(name);
        let image = soon(images.pull(&reference, PullPolicy::Always, auth.clone())).await.unwrap();
        assert_eq!(image.reference(), reference.whole(), "it keeps its own name");
        assert_eq!((sent(&mirror), sent(&origin)), expect, "{name}");
    }
}
