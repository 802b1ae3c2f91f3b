//! What guests may import, by name: enough to tell what a program lacks before anything of it is compiled.
//!
//! The linkers decide in the end; that these names and theirs are the same is a test.

/// Interfaces of WASI that are offered in every released version of it that is 0.2.
const WASI: [&str; 29] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];
/// Interfaces that are drafts: each version stands for itself.
const DRAFTS: [&str; 14] = [
    "wasi:blobstore/blobstore@0.2.0-draft",
    "wasi:blobstore/container@0.2.0-draft",
    "wasi:blobstore/types@0.2.0-draft",
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-rc.1",
    "wasi:keyvalue/atomics@0.2.0-draft",
    "wasi:keyvalue/atomics@0.2.0-draft2",
    "wasi:keyvalue/batch@0.2.0-draft",
    "wasi:keyvalue/batch@0.2.0-draft2",
    "wasi:keyvalue/store@0.2.0-draft",
    "wasi:keyvalue/store@0.2.0-draft2",
    "wasi:logging/logging",
    "wasi:logging/logging@0.1.0-draft",
];
/// What core modules import from.
const MODULE: &str = "wasi_snapshot_preview1";

/// Whether guests are offered an interface, `namespace:package/interface@version`, or a core module's import,
/// `module::name`.
pub fn offers(import: &str) -> bool {
    if let Some((module, _)) = import.split_once("::") {
        return module == MODULE;
    }
    let released = |version: &str| {
        let patch = version.strip_prefix("0.2.").unwrap_or("");
        !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit())
    };
    let wasi = |(name, version): (&str, &str)| released(version) && WASI.contains(&name);
    DRAFTS.contains(&import) || import.split_once('@').is_some_and(wasi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count() {
        let check = |import: &str, expect: bool| assert_eq!(offers(import), expect, "{import}");
        check("wasi:http/types@0.2.0", true);
        check("wasi:http/types@0.2.99", true);
        check("wasi:http/types@0.3.0", false);
        check("wasi:http/types@0.2.0-rc-2023-12-05", false);
        check("wasi:http/types", false);
        check("wasi:config/store@0.2.0-rc.1", true);
        check("wasi:config/store@0.2.0-rc.2", false);
        check("acme:tools/hammer@1.0.0", false);
        check("wasi_snapshot_preview1::fd_write", true);
        check("env::magic", false);
    }
}
