//! How Wasm lies in an image: which layer, and in what wrapping.

use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest};
use serde::Deserialize;

use super::ImageConfig;

/// Config of the CNCF layout.
pub(super) const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Layer of the CNCF layout.
pub(super) const LAYER: &str = "application/wasm";

/// Layers that are Wasm as it is: today's layout and older ones.
const WASM_LAYERS: &[&str] = &[
    LAYER,
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.w3c.wasm.module.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// Layers that are archives with files.
const ARCHIVES: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
/// The name of a layer that is a file.
const TITLE: &str = "org.opencontainers.image.title";
/// Says that a layer is a directory that was packed.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// Configs that say for which platform an archive is.
const IMAGE_CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Where the Wasm is.
#[derive(Debug)]
pub(super) enum Layout<'a> {
    /// This layer is it.
    Layer(&'a OciDescriptor),
    /// A file in one of these archives, if the image's config names a Wasm platform.
    Archives(Vec<&'a OciDescriptor>),
    /// Nowhere: these media types were found.
    NotWasm(Vec<String>),
    /// The manifest contradicts itself.
    Malformed(String),
}

/// Looks for the Wasm in a manifest.
pub(super) fn find(manifest: &OciImageManifest) -> Layout<'_> {
    let is = |kinds: &[&str], layer: &&OciDescriptor| kinds.contains(&layer.media_type.as_str());
    let mut wasm = manifest.layers.iter().filter(|layer| is(WASM_LAYERS, layer));
    match (wasm.next(), wasm.count()) {
        (Some(layer), 0) => return Layout::Layer(layer),
        (Some(_), more) => {
            return Layout::Malformed(format!("it has {} Wasm layers, expected one", more + 1));
        }
        (None, _) => {}
    }
    let archives: Vec<_> = manifest.layers.iter().filter(|layer| is(ARCHIVES, layer)).collect();
    if IMAGE_CONFIGS.contains(&manifest.config.media_type.as_str()) && !archives.is_empty() {
        return Layout::Archives(archives);
    }
    let layers = manifest.layers.iter().map(|layer| layer.media_type.clone());
    Layout::NotWasm(std::iter::once(manifest.config.media_type.clone()).chain(layers).collect())
}

/// What a layer adds to the files of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The files of an archive.
    Archive,
    /// Itself, by this name.
    File(String),
    /// Something that is not understood.
    Unknown,
}

/// What a layer is when the image is wanted for its files. The layers of an image for containers are
/// archives; those of an artifact are files with names of their own, or archives without.
pub(super) fn content(manifest: &OciImageManifest, layer: &OciDescriptor) -> Content {
    let note = |key: &str| layer.annotations.as_ref().and_then(|a| a.get(key));
    let kind = layer.media_type.as_str();
    let archive = ARCHIVES.contains(&kind);
    let image = IMAGE_CONFIGS.contains(&manifest.config.media_type.as_str());
    let title = note(TITLE).filter(|title| !title.is_empty());
    let packed = note(UNPACK).is_some_and(|value| value == "true");
    if archive && (image || packed || title.is_none()) {
        return Content::Archive;
    }
    if (image && !WASM_LAYERS.contains(&kind)) || (kind.contains(".tar+") && !archive) {
        return Content::Unknown;
    }
    Content::File(title.cloned().unwrap_or_else(|| {
        let name = layer.digest.replace(':', "-");
        if WASM_LAYERS.contains(&kind) { format!("{name}.wasm") } else { name }
    }))
}

/// The entry of an index whose files are for this machine, or the platforms there are.
pub(super) fn choose_files(entries: &[ImageIndexEntry]) -> Result<&ImageIndexEntry, Vec<String>> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |entry: &&ImageIndexEntry| match &entry.platform {
        Some(platform) => {
            let (os, arch) = (platform.os.to_string(), platform.architecture.to_string());
            os == "linux" && arch == machine
        }
        None => false,
    };
    if let Some(entry) = entries.iter().find(fits) {
        return Ok(entry);
    }
    match entries {
        [one] => Ok(one),
        _ => entries.iter().find(|entry| entry.platform.is_none()).map_or_else(|| choose(entries), Ok),
    }
}

/// The entry of an index that is for Wasm, or the platforms there are.
pub(super) fn choose(entries: &[ImageIndexEntry]) -> Result<&ImageIndexEntry, Vec<String>> {
    let platform = |entry: &ImageIndexEntry| {
        entry.platform.as_ref().map(|platform| (platform.os.to_string(), platform.architecture.to_string()))
    };
    let wasm = entries.iter().find(|entry| platform(entry).is_some_and(|(os, arch)| is_wasm(&os, &arch)));
    wasm.ok_or_else(|| {
        let name = |entry| platform(entry).map_or("unknown".into(), |(os, arch)| format!("{os}/{arch}"));
        entries.iter().map(name).collect()
    })
}

fn is_wasm(os: &str, architecture: &str) -> bool {
    os.starts_with("wasi") || matches!(architecture, "wasm" | "wasm32")
}

/// The parts of an image config that matter.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PlatformConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RunConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl PlatformConfig {
    pub(super) fn is_wasm(&self) -> bool {
        is_wasm(&self.os, &self.architecture)
    }

    pub(super) fn platform(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }

    /// The file that the image starts, if it says.
    pub(super) fn program(&self) -> Option<&str> {
        let run = self.config.as_ref()?;
        let first = |words: &Option<Vec<String>>| words.as_ref().and_then(|words| words.first().cloned());
        match first(&run.entrypoint) {
            Some(_) => run.entrypoint.as_ref()?.first().map(String::as_str),
            None => run.cmd.as_ref()?.first().map(String::as_str),
        }
    }

    pub(super) fn into_config(self) -> ImageConfig {
        let run = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.filter(|dir| !dir.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

    fn manifest(config: &str, layers: &[&str]) -> OciImageManifest {
        let descriptor = |kind: &str| json!({"mediaType": kind, "digest": "sha256:00", "size": 1});
        let layers: Vec<_> = layers.iter().map(|kind| descriptor(kind)).collect();
        serde_json::from_value(json!({"schemaVersion": 2, "config": descriptor(config), "layers": layers}))
            .unwrap()
    }

    #[test]
    fn wasm_is_found_in_every_layout() {
        let check = |config: &str, layers: &[&str], expect: &str| {
            let manifest = manifest(config, layers);
            let found = match find(&manifest) {
                Layout::Layer(layer) => layer.media_type.clone(),
                Layout::Archives(layers) => format!("{} archives", layers.len()),
                Layout::NotWasm(kinds) => format!("not Wasm: {}", kinds.len()),
                Layout::Malformed(text) => text,
            };
            assert_eq!(found, expect, "{config} {layers:?}");
        };
        let targz = "application/vnd.oci.image.layer.v1.tar+gzip";
        check(CONFIG, &[LAYER], LAYER);
        check("application/vnd.wasm.config.v1+json", &[WASM_LAYERS[1]], WASM_LAYERS[1]);
        check(
            "application/vnd.fermyon.spin.application.v1+config",
            &[WASM_LAYERS[1], "x/data"],
            WASM_LAYERS[1],
        );
        check(OCI_CONFIG, &[LAYER], LAYER);
        check(OCI_CONFIG, &[targz, targz], "2 archives");
        check(CONFIG, &[LAYER, LAYER], "it has 2 Wasm layers, expected one");
        check("application/vnd.cncf.helm.config.v1+json", &["application/tar"], "not Wasm: 2");
        check(OCI_CONFIG, &[], "not Wasm: 1");
    }

    #[test]
    fn layers_are_archives_or_files() {
        let targz = "application/vnd.oci.image.layer.v1.tar+gzip";
        let empty = "application/vnd.oci.empty.v1+json";
        let check = |config: &str, kind: &str, notes: serde_json::Value, expect: Content| {
            let mut manifest = manifest(config, &[kind]);
            manifest.layers[0].annotations = serde_json::from_value(notes.clone()).unwrap();
            assert_eq!(content(&manifest, &manifest.layers[0]), expect, "{config} {kind} {notes}");
        };
        let file = |name: &str| Content::File(name.into());
        let title = || json!({TITLE: "model.bin"});
        check(OCI_CONFIG, targz, json!({}), Content::Archive);
        check(OCI_CONFIG, targz, title(), Content::Archive);
        check(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd", json!({}), Content::Archive);
        check(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+encrypted", json!({}), Content::Unknown);
        check(OCI_CONFIG, "text/plain", json!({}), Content::Unknown);
        check(empty, targz, title(), file("model.bin"));
        check(empty, targz, json!({TITLE: "dir", UNPACK: "true"}), Content::Archive);
        check(empty, targz, json!({}), Content::Archive);
        check(empty, "text/plain", title(), file("model.bin"));
        check(empty, "text/plain", json!({}), file("sha256-00"));
        check(CONFIG, LAYER, json!({}), file("sha256-00.wasm"));
    }

    #[test]
    fn index_is_searched_for_this_machine() {
        let entry = |digest: &str, platform: serde_json::Value| {
            serde_json::from_value::<ImageIndexEntry>(
                json!({"mediaType": "m", "digest": digest, "size": 1, "platform": platform}),
            )
            .unwrap()
        };
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let own = entry("own", json!({"os": "linux", "architecture": machine}));
        let other = entry("other", json!({"os": "linux", "architecture": "s390x"}));
        let wasm = entry("wasm", json!({"os": "wasip1", "architecture": "wasm"}));
        let plain = entry("plain", json!(null));
        let check = |entries: &[&ImageIndexEntry], expect: Option<&str>| {
            let entries: Vec<_> = entries.iter().map(|e| (*e).clone()).collect();
            let found = choose_files(&entries).ok().map(|e| e.digest.clone());
            assert_eq!(found.as_deref(), expect);
        };
        check(&[&wasm, &other, &own], Some("own"));
        check(&[&other, &wasm], Some("wasm"));
        check(&[&other], Some("other"));
        check(&[&other, &plain], Some("plain"));
        check(&[&other, &other], None);
    }

    #[test]
    fn index_is_searched_for_a_wasm_platform() {
        let entry = |os: &str, arch: &str| {
            serde_json::from_value::<ImageIndexEntry>(json!({
                "mediaType": "m", "digest": format!("sha256:{os}"), "size": 1,
                "platform": {"os": os, "architecture": arch},
            }))
            .unwrap()
        };
        let mixed = [entry("linux", "amd64"), entry("wasip1", "wasm")];
        assert_eq!(choose(&mixed).unwrap().digest, "sha256:wasip1");
        assert_eq!(choose(&mixed[..1]).unwrap_err(), ["linux/amd64"]);
        assert_eq!(choose(&[]).unwrap_err(), Vec::<String>::new());
    }

    #[test]
    fn config_tells_platform_and_program() {
        let config: PlatformConfig = serde_json::from_value(json!({
            "os": "wasip1", "architecture": "wasm",
            "config": {"Entrypoint": ["/app.wasm"], "Cmd": ["-v"], "Env": ["A=1"], "WorkingDir": ""},
        }))
        .unwrap();
        assert!(config.is_wasm());
        assert_eq!(config.program(), Some("/app.wasm"));
        let run = config.into_config();
        assert_eq!((run.cmd, run.env, run.working_dir), (vec!["-v".into()], vec!["A=1".into()], None));
        let linux: PlatformConfig =
            serde_json::from_value(json!({"os": "linux", "architecture": "amd64"})).unwrap();
        assert!(!linux.is_wasm());
        assert_eq!((linux.platform().as_str(), linux.program()), ("linux/amd64", None));
    }
}
