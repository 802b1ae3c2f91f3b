//! What kubectl said to a Kubernetes 1.36, against what it says to this program without controllers and nodes.
//!
//! `tests/vectors/kubectl.jsonl.gz` holds the command lines with output and exit code, as kubectl 1.36 gave them. What
//! only an older client words otherwise is evened out; one older than 1.30 is held to the exit codes.

#[allow(dead_code, reason = "what kubectl prints needs a part of the rules")]
#[path = "../../host/apiserver/tests/recorded/normal.rs"]
mod normal;

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use futures::{StreamExt, stream};
use kube::{Client, Config, config::KubeConfigOptions};
use normal::Normal;
use rand::Rng;
use regex::Regex;
use serde_json::{Value, json};
use wasmk_tests::program::{Program, repository};

/// The oldest client whose words are compared.
const SPEAKS_ALIKE: u64 = 30;
/// The first client that prints kyaml.
const PRINTS_KYAML: u64 = 34;
/// Cases that clients older than [`SPEAKS_ALIKE`] cannot take part in: they lack the commands or flags.
const TOO_NEW: [&str; 4] =
    ["kubectl/events/list", "kubectl/kinds/pdb", "kubectl/apply/csa-to-ssa", "kubectl/apply/prune"];

fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

/// What differs between runs and between clients, with what takes its place.
static CONSOLE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    vec![
        (regex(r#"(resourceVersion"?: ")\d+""#), "${1}<rv>\""),
        (regex(r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}\b"), "<date>"),
        (regex(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4}( [A-Z]{3})?"), "<date>"),
        (regex(r"/tmp/(LIVE|MERGED)-\d+"), "/tmp/${1}-<n>"),
        (regex(r"(Resource Version: +)\d+"), "${1}<rv>"),
        (regex(r"\b[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ "), "<log> "),
        (regex(r"\b3[0-2]\d{3}(/TCP|/UDP|/SCTP)"), "<nodePort>${1}"),
        (regex(r#"(nodePort"?: )3[0-2]\d{3}\b"#), "${1}<nodePort>"),
        (regex(r"(NodePort: +\S+ +)3[0-2]\d{3}\b"), "${1}<nodePort>"),
        (regex(r"[0-9a-f]{9,10}(-[a-z0-9]{5}\b)"), "<hash>${1}"),
        // What clients before 1.36 say otherwise.
        (regex(r" from \S+ namespace\b"), ""),
        (regex(r"(?m)^ *creationTimestamp: null\n"), ""),
        (regex(r"(?m)^Events: +<none>\n"), ""),
        (regex(r"(?m)^( *(?:Host )?Ports?:\s+\S+) \(\S+\)$"), "${1}"),
    ]
});
/// What is normalised in each line after its cells are parted.
static LINE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    vec![
        (regex(r"\b\d+(\.\d+)?(s|m|h|ms|m\d+s) ago\b"), "<age> ago"),
        (regex(r"\((x\d+ over )?(\d+[ydhms])+\)"), "(<age>)"),
    ]
});
static CELLS: LazyLock<Regex> = LazyLock::new(|| regex(r" {2,}|\t"));
static AGE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(<invalid>|<unknown>|(\d+(y|d|h|m|s))+( \(<age>\))?)$"));

/// Cases that run at the same time.
const AT_ONCE: usize = 4;

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let flags = ["--controllers=-*", "--no-node", "--store", "memory", "--service-cidr", "10.96.0.0/16"];
    Program::start_with(&flags)
});

struct Case {
    client: Client,
    minor: u64,
    word: String,
    normal: Normal,
    dir: PathBuf,
    namespace: String,
}

impl Case {
    fn fill(&self, text: &str) -> String {
        text.replace("{u}", &self.word)
    }

    async fn send(&self, request: &Value) -> kube::Result<String> {
        let body = &request["body"];
        let mut sent = http::Request::builder()
            .method(request["method"].as_str().expect("a method"))
            .uri(self.fill(request["path"].as_str().expect("a path")))
            .header("Content-Type", "application/json")
            .header("User-Agent", "corpus/1.0");
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            sent = sent.header(name, self.fill(value.as_str().expect("a header")));
        }
        let body = if body.is_null() { Vec::new() } else { self.fill(&body.to_string()).into_bytes() };
        self.client.request_text(sent.body(body).expect("a request")).await
    }

    async fn prepare(&self, case: &Value) {
        let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        for (path, name) in [("/api/v1/namespaces", &*self.namespace), (&*accounts, "default")] {
            let body = json!({ "metadata": { "name": name } });
            let made = self.send(&json!({ "method": "POST", "path": path, "body": body })).await;
            made.unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        std::fs::create_dir(&self.dir).expect("a folder");
        for (name, text) in case["files"].as_object().into_iter().flatten() {
            let path = self.dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, self.fill(text.as_str().unwrap())).unwrap();
        }
        for item in case["setup"].as_array().into_iter().flatten() {
            if item.get("kubectl").is_some() {
                let out = self.kubectl(item);
                assert!(out.status.success(), "{item}: {}", String::from_utf8_lossy(&out.stderr));
                continue;
            }
            let request = item.get("request").unwrap_or(item);
            self.send(request).await.unwrap_or_else(|e| panic!("{item}: {e}"));
        }
    }

    fn kubectl(&self, step: &Value) -> Output {
        use std::io::Write;
        let mut args: Vec<String> =
            step["kubectl"].as_array().unwrap().iter().map(|a| self.fill(a.as_str().unwrap())).collect();
        let named = args.iter().any(|a| matches!(a.as_str(), "-n" | "-A" | "--all-namespaces"));
        if step["noNamespace"] != true && !named {
            args.splice(0..0, ["-n".to_owned(), self.namespace.clone()]);
        }
        let mut child = Command::new("kubectl")
            .args(args)
            .current_dir(&self.dir)
            .env("HOME", &self.dir)
            .env("KUBECONFIG", CLUSTER.kubeconfig())
            .envs([("LANG", "C"), ("COLUMNS", "200"), ("KUBECTL_EXTERNAL_DIFF", "diff -u -N")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let text = self.fill(step["stdin"].as_str().unwrap_or(""));
        // A kubectl that does not read its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        child.wait_with_output().expect("kubectl ends")
    }

    /// The differences of a step; empty when there are none.
    fn step(&mut self, step: &Value) -> Vec<String> {
        let kyaml = step["kubectl"].as_array().unwrap().iter().any(|a| a == "kyaml");
        if kyaml && self.minor < PRINTS_KYAML {
            return Vec::new();
        }
        let (out, expect) = (self.kubectl(step), &step["expect"]);
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        if let Ok(value) = serde_json::from_str(&stdout) {
            self.normal.learn(&value);
        }
        let mut told = Vec::new();
        if expect["exit"] != json!(out.status.code()) {
            told.push(format!("exit: expected {}, found {:?}", expect["exit"], out.status.code()));
        }
        if self.minor < SPEAKS_ALIKE || step["mode"] == "exit" {
            return told;
        }
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        for (name, found) in [("stdout", stdout), ("stderr", stderr)] {
            let found = self.shaped(step, name, &found);
            let wanted = self.shaped(step, name, expect[name].as_str().unwrap_or(""));
            if found != wanted {
                told.push(format!("{name}: expected\n{wanted}\nfound\n{found}"));
            }
        }
        told
    }

    fn shaped(&mut self, step: &Value, name: &str, text: &str) -> String {
        let text = self.console(text);
        let mut lines: Vec<&str> = text.trim_end_matches('\n').split('\n').collect();
        // kubectl lists the data of a Secret in no order.
        let is = |word: &str| step["kubectl"].as_array().is_some_and(|args| args.iter().any(|a| a == word));
        let unordered = is("describe") && (is("secret") || is("secrets"));
        if name == "stdout" && (unordered || step["sortLines"] == true) {
            lines.sort_unstable();
        }
        if name == "stdout" && step["mode"] == "head" {
            lines.truncate(step["lines"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(3));
        }
        lines.join("\n")
    }

    /// Console text with what differs between runs evened out: ages, addresses, allocated values, alignment.
    fn console(&mut self, text: &str) -> String {
        let server = format!("https://{}", CLUSTER.address("api"));
        let text = text
            .replace(&self.dir.display().to_string(), "<dir>")
            .replace(&server, "<server>")
            .replace(server.trim_start_matches("https://"), "<host>");
        let text = self.normal.text(&text);
        let text =
            CONSOLE.iter().fold(text, |text, (found, shown)| found.replace_all(&text, *shown).into_owned());
        text.split('\n').map(line).collect::<Vec<_>>().join("\n")
    }
}

fn line(text: &str) -> String {
    let body = text.trim_start_matches(' ');
    let lead = &text[..text.len() - body.len()];
    let body = LINE
        .iter()
        .fold(body.to_owned(), |body, (found, shown)| found.replace_all(&body, *shown).into_owned());
    let cells: Vec<&str> =
        CELLS.split(body.trim_end_matches(' ')).map(|c| if AGE.is_match(c) { "<age>" } else { c }).collect();
    format!("{lead}{}", cells.join("  ")).trim_end().to_owned()
}

fn cases() -> Vec<Value> {
    let packed = std::fs::read(repository().join("tests/vectors/kubectl.jsonl.gz")).expect("the transcripts");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*packed).read_to_string(&mut text).expect("gzip");
    text.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).expect("a case")).collect()
}

/// The minor version of the kubectl on the path.
fn minor() -> u64 {
    let out = CLUSTER.client(Path::new("kubectl"), &["version", "--client", "-o", "json"], None);
    let version: Value = serde_json::from_slice(&out.stdout).expect("a version");
    let minor = version["clientVersion"]["minor"].as_str().expect("a minor version");
    minor.trim_end_matches('+').parse().expect("a number")
}

async fn run(client: Client, minor: u64, at: usize, case: &Value) -> Vec<String> {
    let word: String = std::iter::once('q')
        .chain((0..7).map(|_| char::from(b"bcdfghjklmnpqrstvwxz"[rand::rng().random_range(0..20)])))
        .collect();
    let steps = case["steps"].as_array().cloned().unwrap_or_else(|| vec![case.clone()]);
    let mut own = vec![case["setup"].clone(), case["files"].clone()];
    own.extend(steps.iter().map(|step| {
        let mut step = step.clone();
        step.as_object_mut().unwrap().remove("expect");
        step
    }));
    let mut running = Case {
        client,
        minor,
        normal: Normal::new(&word, Value::Array(own).to_string()),
        dir: CLUSTER.scratch().join(format!("case-{at}")),
        namespace: format!("t-{word}"),
        word,
    };
    running.prepare(case).await;
    let mut told = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        told.extend(running.step(step).into_iter().map(|what| format!("step {}: {what}", at + 1)));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_says_what_it_says_to_kubernetes() {
    let text = std::fs::read_to_string(CLUSTER.kubeconfig()).expect("a kubeconfig");
    let file = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig's form");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("settings");
    let client = Client::try_from(config).expect("a client");
    let minor = minor();
    let id = |case: &Value| case["id"].as_str().expect("an id").to_owned();
    let cases = cases().into_iter().enumerate();
    let cases = cases.filter(|(_, case)| minor >= SPEAKS_ALIKE || !TOO_NEW.contains(&&*id(case)));
    let one = |(at, case): (usize, Value)| {
        // kubectl is waited for, which would hold up the others here.
        let (client, runtime) = (client.clone(), tokio::runtime::Handle::current());
        tokio::task::spawn_blocking(move || (id(&case), runtime.block_on(run(client, minor, at, &case))))
    };
    let outcomes: Vec<_> = stream::iter(cases).map(one).buffer_unordered(AT_ONCE).collect().await;
    let mut wrong = Vec::new();
    for outcome in &outcomes {
        let (id, told) = outcome.as_ref().expect("a case that ends");
        if !told.is_empty() {
            wrong.push(format!("{id}:\n    {}", told.join("\n    ")));
        }
    }
    assert!(outcomes.len() >= 34, "{} transcripts", outcomes.len());
    assert!(wrong.is_empty(), "{} with kubectl 1.{minor}:\n{}", wrong.len(), wrong.join("\n"));
}
