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
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
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
