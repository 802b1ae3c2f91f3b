//! Compiles the messages of the container runtime interface and of device plugins.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let runtime = protox::compile(["proto/runtime.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(runtime)?;
    let devices = protox::compile(["proto/devices.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(devices)?;
    Ok(())
}
