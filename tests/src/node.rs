//! A cluster whose node has a container runtime, and the pods that tests run there.

use std::process::Command;

use crate::{containerd::Containerd, program::Program};

/// The two, ended together. One test holds many stories, for statics would leave the runtime behind.
#[derive(Debug)]
pub struct Node {
    /// The cluster.
    pub program: Program,
    /// Its runtime.
    pub containerd: Containerd,
}

impl Node {
    /// Starts both; `None`, with a word on standard error, where containers cannot be run and need not be.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts both, the program with more flags.
    pub fn start_with(flags: &[&str]) -> Option<Self> {
        let containerd = Containerd::start()?;
        let endpoint = containerd.endpoint();
        let flags = [&["--container-runtime-endpoint", &endpoint], flags].concat();
        let program = Program::start_with(&flags);
        program.until_value("node/node-a", "{.metadata.labels.wasmk\\.dev/runtime-container}", "true");
        Some(Self { program, containerd })
    }
}

/// Tells stories of one cluster at the same time; each has pods of its own names.
pub fn together(program: &Program, stories: &[fn(&Program)]) {
    std::thread::scope(|scope| {
        for story in stories {
            scope.spawn(|| story(program));
        }
    });
}

/// A container of busybox that runs a line of shell; `more` is more of its YAML, `, field: value`.
pub fn container(name: &str, line: &str, more: &str) -> String {
    format!("{{name: {name}, image: 'localhost/box:1', command: [sh, -c, {line:?}]{more}}}")
}

/// A pod of such containers; `spec` is more of its YAML, `field: value, `.
pub fn pod(name: &str, spec: &str, containers: &[String]) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{{spec}terminationGracePeriodSeconds: 2, containers: [{}]}}\n---\n",
        containers.join(", ")
    )
}

/// What is at a URL.
pub fn fetch(url: &str) -> String {
    let out = Command::new("curl").args(["-sS", "--max-time", "10", url]).output().expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Program {
    /// What a command in a container prints, which must succeed; `of` is `pod` or `pod -c container`.
    pub fn within(&self, of: &str, line: &str) -> String {
        let mut args = vec!["exec"];
        args.extend(of.split(' '));
        args.extend(["--", "sh", "-c", line]);
        self.kubectl(&args)
    }

    /// Waits until the columns of `kubectl get pod` without the name are these: `2/2 Running 0`.
    pub fn until_row(&self, pod: &str, expected: &str) {
        let row = |p: &Self| {
            let out = p.kubectl_output(&["get", "pod", pod, "--no-headers"], None);
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            text.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ")
        };
        self.until(&format!("the row of {pod}"), row, |row| row.starts_with(expected));
    }

    /// Waits until all that a container has printed is this; `of` is `pod` or `pod -c container`.
    pub fn until_log(&self, of: &str, expected: &str) {
        let args: Vec<&str> = std::iter::once("logs").chain(of.split(' ')).collect();
        let log = |p: &Self| p.kubectl_output(&args, None);
        self.until(&format!("the log of {of}"), log, |out| out.stdout == expected.as_bytes());
    }

    /// What is said in events about an object.
    pub fn events(&self, name: &str) -> String {
        let of = format!("involvedObject.name={name}");
        let rows = "jsonpath={range .items[*]}{.type} {.reason} {.message}{\"\\n\"}{end}";
        self.kubectl(&["get", "events", "--field-selector", &of, "-o", rows])
    }

    /// Waits until an event about an object contains this.
    pub fn until_event(&self, name: &str, words: &str) {
        self.until(&format!("{words} of {name}"), |p| p.events(name), |text| text.contains(words));
    }
}
