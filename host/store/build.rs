//! Compiles the interface of etcd; no program beside cargo is needed for it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["etcd.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    // Values are shared between the history and its watchers.
    config.bytes(["."]);
    tonic_prost_build::configure().build_server(false).compile_fds_with_config(files, config)?;
    Ok(())
}
