//! The socket where plugins register.

use std::{io, os::unix::fs::FileTypeExt, path::Path, sync::Arc};

use futures::stream;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status, transport::Server};
use wasmk_cri::devices::{
    Empty, RegisterRequest,
    registration_server::{Registration, RegistrationServer},
};

use super::{Devices, MOST};

/// The socket's name, which plugins know.
const SOCKET: &str = "kubelet.sock";
/// The version of the interface.
const VERSION: &str = "v1beta1";

struct Registrar(Arc<Devices>);

/// Serves until it is dropped.
pub(super) async fn serve(devices: Arc<Devices>) -> io::Result<()> {
    clear(&devices.dir)?;
    let listener = UnixListener::bind(devices.dir.join(SOCKET))?;
    let accepted = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = Server::builder().add_service(RegistrationServer::new(Registrar(devices)));
    server.serve_with_incoming(accepted).await.map_err(io::Error::other)
}

/// Removes sockets of an earlier life, which nobody answers at: plugins take that for the sign to come again.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a resource can be a plugin's: `domain/name`, and no name of Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let part = |part: &str, more: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    part(domain, "-.") && part(rest, "-._") && !own && name.len() <= 253
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            let text = format!("version {:?} is not spoken here, {VERSION:?} is", request.version);
            return Err(Status::invalid_argument(text));
        }
        let resource = request.resource_name;
        if !is_extended(&resource) {
            let text = format!("resource name {resource:?}: `domain/name` was expected");
            return Err(Status::invalid_argument(text));
        }
        let known = self.0.state.lock().records.resources().filter(|name| *name != resource).count();
        if known >= MOST {
            return Err(Status::resource_exhausted(format!("{MOST} resources are registered already")));
        }
        let endpoint = Path::new(&request.endpoint);
        // Plugins stand elsewhere; what they name is in this directory.
        let name = endpoint.file_name().filter(|_| endpoint.components().count() == 1);
        let Some(name) = name else {
            let text = format!(
                "endpoint {:?}: the name of a socket in this directory was expected",
                request.endpoint
            );
            return Err(Status::invalid_argument(text));
        };
        self.0.take_up(resource, self.0.dir.join(name), &request.options.unwrap_or_default());
        Ok(Response::new(Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_a_domain() {
        for (name, expect) in [
            ("example.com/gpu", true),
            ("nvidia.com/mig-1g.5gb", true),
            ("gpu", false),
            ("kubernetes.io/gpu", false),
            ("x.kubernetes.io/gpu", false),
            ("/gpu", false),
            ("example.com/", false),
            ("example.com/a/b", false),
        ] {
            assert_eq!(is_extended(name), expect, "{name}");
        }
    }
}
