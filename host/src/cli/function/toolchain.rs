//! How each language's functions are built, told apart by the files in their directory.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::super::hint::WithHint;
use anyhow::{Context as _, Result, anyhow, bail};
use wasi_preview1_component_adapter_provider as adapter;

/// Builds with rustup's target where it is there, else with Debian's sources of the standard library.
const RUST: &str = include_str!("../../../../tools/guest-build");
/// Makes a component of a script.
const JAVASCRIPT: &str = "\
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { writeFile } from 'node:fs/promises';
const [sourcePath, witPath, worldName, out] = process.argv.slice(2);
const resolve = createRequire(pathToFileURL(process.cwd() + '/')).resolve;
const { componentize } = await import(pathToFileURL(resolve('@bytecodealliance/componentize-js')));
await writeFile(out, (await componentize({ sourcePath, witPath, worldName })).component);
";
/// The version of WASI that JavaScript's engine asks for by name.
const JAVASCRIPT_WASI: &str = "0.2.10";
/// The version of WASI in the files below.
const WASI: &str = "0.2.12";
/// What a script's function imports and exports: no more than its engine knows what to do with.
const SCRIPT: &str = "\
package wasmk:script;

world script {
  include wasi:http/proxy@0.2.12;
  import wasi:cli/environment@0.2.12;
}
";
/// The interfaces of functions.
const WIT: [(&str, &str); 8] = [
    ("world.wit", SCRIPT),
    ("deps/cli.wit", include_str!("../../../../sdk/wit/deps/cli.wit")),
    ("deps/clocks.wit", include_str!("../../../../sdk/wit/deps/clocks.wit")),
    ("deps/filesystem.wit", include_str!("../../../../sdk/wit/deps/filesystem.wit")),
    ("deps/http.wit", include_str!("../../../../sdk/wit/deps/http.wit")),
    ("deps/io.wit", include_str!("../../../../sdk/wit/deps/io.wit")),
    ("deps/random.wit", include_str!("../../../../sdk/wit/deps/random.wit")),
    ("deps/sockets.wit", include_str!("../../../../sdk/wit/deps/sockets.wit")),
];
/// The world of scripts.
const WORLD: &str = "script";

/// A language that functions are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toolchain {
    Rust,
    JavaScript,
    Python,
    C,
    Go,
}

impl Toolchain {
    /// The language of a directory.
    ///
    /// # Errors
    /// When it holds no function.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        let known = [
            ("Cargo.toml", Self::Rust),
            ("package.json", Self::JavaScript),
            // Before Python: what gets their compilers is in the same file.
            ("function.c", Self::C),
            ("go.mod", Self::Go),
            ("requirements.txt", Self::Python),
        ];
        let found = known.iter().find(|(file, _)| dir.join(file).exists()).map(|(_, toolchain)| *toolchain);
        let nothing = || {
            anyhow!(
                "{} holds no function: there is no Cargo.toml, package.json, function.c, go.mod or requirements.txt",
                dir.display()
            )
        };
        found.ok_or_else(nothing).hint(|| "make one with `wasmk fn new NAME`, or name a .wasm file".into())
    }

    /// Builds a directory's function into a file.
    ///
    /// # Errors
    /// When a tool is missing, with how to get it, or with what the build said.
    pub(super) fn build(self, dir: &Path, output: &Path) -> Result<()> {
        let output = std::path::absolute(output)?;
        match self {
            Self::Rust => rust(dir, &output),
            Self::JavaScript => javascript(dir, &output),
            Self::Python => python(dir, &output),
            Self::C => c(dir, &output),
            Self::Go => go(dir, &output),
        }
    }
}

fn rust(dir: &Path, output: &Path) -> Result<()> {
    let mut child = Command::new("bash")
        .args(["-s", "--", "-o"])
        .arg(output)
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start bash, which runs the build")?;
    child.stdin.take().context("the build takes no input")?.write_all(RUST.as_bytes())?;
    succeeded(dir, child.wait_with_output()?)
}

fn javascript(dir: &Path, output: &Path) -> Result<()> {
    needs("node", "install Node.js 20 or newer (https://nodejs.org, or `apt-get install nodejs npm`)")?;
    if !dir.join("node_modules/@bytecodealliance/componentize-js").exists() {
        needs("npm", "install npm (`apt-get install npm`)")?;
        run(dir, Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent"]))?;
    }
    let wit = wit(JAVASCRIPT_WASI)?;
    let script = wit.path().join("build.mjs");
    std::fs::write(&script, JAVASCRIPT)?;
    let source = std::path::absolute(dir.join("function.js"))?;
    let mut node = Command::new("node");
    node.arg(script).arg(source).arg(wit.path().join("wit")).arg(WORLD).arg(output);
    run(dir, &mut node)
}

fn python(dir: &Path, output: &Path) -> Result<()> {
    let tool = fetched(dir, "componentize-py")?;
    let wit = wit(WASI)?;
    let mut command = Command::new(tool);
    command
        .arg("-d")
        .arg(wit.path().join("wit"))
        .args(["-w", WORLD, "componentize", "app", "-o"])
        .arg(output);
    run(dir, &mut command)
}

/// A program that the directory's requirements name, fetched unless it is there.
fn fetched(dir: &Path, program: &str) -> Result<PathBuf> {
    let own = std::path::absolute(dir.join(".venv"))?;
    let tool = own.join("bin").join(program);
    if !tool.exists() {
        needs("python3", "install Python 3.10 or newer (`apt-get install python3-venv`)")?;
        run(dir, Command::new("python3").args(["-m", "venv", ".venv"]))?;
        run(dir, Command::new(own.join("bin/pip")).args(["install", "-q", "-r", "requirements.txt"]))?;
    }
    Ok(tool)
}

/// Every C file of the directory, made a core module by zig and a component here.
fn c(dir: &Path, output: &Path) -> Result<()> {
    let mut compiler = Command::new(if is_there("zig") { "zig".into() } else { fetched(dir, "python-zig")? });
    let work = Scratch::new()?;
    let core = work.path().join("core.wasm");
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "c") {
            sources.push(name);
        }
    }
    sources.sort();
    compiler.args(["cc", "--target=wasm32-wasi", "-mexec-model=reactor", "-Os", "-s", "-o"]);
    run(dir, compiler.arg(&core).args(sources))?;
    let component =
        component(&std::fs::read(&core)?).with_context(|| format!("{} makes no component", dir.display()))?;
    std::fs::write(output, component).with_context(|| format!("cannot write {}", output.display()))
}

/// A command of WASI 0.1, which is started for each request.
fn go(dir: &Path, output: &Path) -> Result<()> {
    let mut compiler = Command::new(if is_there("go") { "go".into() } else { fetched(dir, "go")? });
    compiler.envs([("GOOS", "wasip1"), ("GOARCH", "wasm"), ("CGO_ENABLED", "0")]);
    compiler.args(["build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o"]).arg(output).arg(".");
    run(dir, &mut compiler)
}

/// A core module of WASI 0.1 that exports what the interface of functions asks for, as a component.
fn component(core: &[u8]) -> Result<Vec<u8>> {
    let wit = wit(WASI)?;
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir(wit.path().join("wit"))?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    let mut core = core.to_vec();
    let utf8 = wit_component::StringEncoding::UTF8;
    wit_component::embed_component_metadata(&mut core, &resolve, world, utf8)?;
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&core)?
        .adapter(
            adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
            adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        )?
        .encode()
}

/// The interfaces of functions in a directory of their own, for a version of WASI.
fn wit(version: &str) -> Result<Scratch> {
    let dir = Scratch::new()?;
    std::fs::create_dir_all(dir.path().join("wit/deps"))?;
    for (file, text) in WIT {
        std::fs::write(dir.path().join("wit").join(file), text.replace(WASI, version))?;
    }
    Ok(dir)
}

/// A directory of this build's own, removed with what is in it when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let name = format!("wasmk-build-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a temporary file like any other.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn is_there(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir: PathBuf| dir.join(program).is_file()))
}

fn needs(program: &str, how: &str) -> Result<()> {
    if is_there(program) {
        return Ok(());
    }
    Err(anyhow!("the build needs {program}, which is not installed")).hint(|| how.into())
}

fn run(dir: &Path, command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.current_dir(dir).stdin(Stdio::null()).output();
    succeeded(dir, done.with_context(|| format!("cannot start {name}"))?)
}

fn succeeded(dir: &Path, done: Output) -> Result<()> {
    if done.status.success() {
        return Ok(());
    }
    let (errors, text) = (String::from_utf8_lossy(&done.stderr), String::from_utf8_lossy(&done.stdout));
    bail!("the build of {} failed:\n{}\n{}", dir.display(), text.trim(), errors.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_by_their_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Toolchain::of(dir.path()).is_err());
        for (file, expected) in [
            ("requirements.txt", Toolchain::Python),
            ("go.mod", Toolchain::Go),
            ("function.c", Toolchain::C),
            ("package.json", Toolchain::JavaScript),
            ("Cargo.toml", Toolchain::Rust),
        ] {
            std::fs::write(dir.path().join(file), "").unwrap();
            assert_eq!(Toolchain::of(dir.path()).unwrap(), expected);
        }
    }

    #[test]
    fn a_core_module_becomes_a_component() {
        let core = |name: &str| {
            let text = format!(
                "(module (memory (export \"memory\") 1) (func (export \"{name}\") (param i32 i32)) \
                 (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 16)))"
            );
            component(&wat::parse_str(text).unwrap())
        };
        let made = core("wasi:http/incoming-handler@0.2.12#handle").unwrap();
        assert_eq!(made[..8], *b"\0asm\x0d\0\x01\0");
        assert!(format!("{:#}", core("something").unwrap_err()).contains("wasi:http/incoming-handler"));
    }

    #[test]
    fn interfaces_come_in_the_version_asked_for() {
        let wit = wit(JAVASCRIPT_WASI).unwrap();
        let text = std::fs::read_to_string(wit.path().join("wit/world.wit")).unwrap();
        assert!(text.contains("wasi:http/proxy@0.2.10") && !text.contains(WASI));
    }
}
