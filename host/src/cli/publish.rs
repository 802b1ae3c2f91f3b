//! Where Ingresses are served, as flags of `wasmk up` say it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use anyhow::{Result, bail};

use crate::cluster::IngressAddresses;

/// Ports of Ingresses as the cluster knows them.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct IngressArgs {
    /// Where Ingresses are served; goes on without them when the port is not to be had
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:80")]
    ingress_addr: SocketAddr,
    /// Where Ingresses are served over TLS; goes on without them when the port is not to be had
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:443")]
    ingress_tls_addr: SocketAddr,
    /// Serve Ingresses at this port of the machine instead, `[IP:]HOST-PORT:PORT` where PORT is 80, or 443 for TLS: 8081:80.
    /// May be repeated; IP is 127.0.0.1 unless named. Services of type NodePort and LoadBalancer have their own ports and
    /// addresses on this machine
    #[arg(short = 'p', long, alias = "port", value_name = "PORTS", value_delimiter = ',', conflicts_with_all = ["ingress_addr", "ingress_tls_addr"])]
    publish: Vec<Published>,
    /// Serve no Ingresses: another controller does, or none
    #[arg(long, conflicts_with_all = ["ingress_addr", "ingress_tls_addr", "publish"])]
    no_ingress: bool,
}

impl IngressArgs {
    /// What they come to.
    ///
    /// # Errors
    /// When a port is published twice.
    pub(super) fn addresses(&self) -> Result<IngressAddresses> {
        if self.no_ingress {
            return Ok(IngressAddresses::LeftOut);
        }
        if self.publish.is_empty() {
            let (http, https) = (self.ingress_addr, self.ingress_tls_addr);
            return Ok(IngressAddresses::IfFree { http, https });
        }
        let at = |port: u16| {
            let mut all = self.publish.iter().filter(|p| p.port == port).map(|p| p.at);
            let first = all.next();
            match all.next() {
                Some(more) => {
                    bail!("--publish names port {port} more than once; {more} is one address too many")
                }
                None => Ok(first),
            }
        };
        Ok(IngressAddresses::Published { http: at(HTTP)?, https: at(HTTPS)? })
    }
}

/// A port of the cluster on a port of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Published {
    at: SocketAddr,
    port: u16,
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What k3d wants behind it means here what it means there.
        let ports = text.strip_suffix("@loadbalancer").unwrap_or(text);
        let expected = "`HOST-PORT:PORT` or `IP:HOST-PORT:PORT` was expected, like 8081:80";
        let (at, port) = ports.rsplit_once(':').ok_or(expected)?;
        let at = match at.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => at.parse().map_err(|_| expected)?,
        };
        match port.parse() {
            Ok(port @ (HTTP | HTTPS)) => Ok(Self { at, port }),
            Ok(port) => Err(format!(
                "port {port} cannot be published: only Ingresses' are, 80 and 443. A Service of type NodePort is at \
                 its own port of this machine already"
            )),
            Err(_) => Err(expected.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: IngressArgs,
    }

    #[test]
    fn ports_are_published_as_k3d_has_it() {
        let check = |text: &str, expect: Option<(&str, u16)>| {
            let read = text.parse::<Published>().ok();
            let expect = expect.map(|(at, port)| Published { at: at.parse().unwrap(), port });
            assert_eq!(read, expect, "{text}");
        };
        check("8081:80", Some(("127.0.0.1:8081", 80)));
        check("8081:80@loadbalancer", Some(("127.0.0.1:8081", 80)));
        check("0.0.0.0:8443:443", Some(("0.0.0.0:8443", 443)));
        check("[::1]:0:80", Some(("[::1]:0", 80)));
        for wrong in ["80", "8081:", "8081:8080", "x:80", "8081:80@agent:0", "127.0.0.1:80"] {
            check(wrong, None);
        }
    }

    #[test]
    fn flags_come_to_addresses() {
        let check = |flags: &[&str], expect: IngressAddresses| {
            let line = Line::try_parse_from([&["up"], flags].concat()).map_err(|e| e.to_string()).unwrap();
            assert_eq!(line.args.addresses().unwrap(), expect, "{flags:?}");
        };
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        check(&[], IngressAddresses::IfFree { http: at("127.0.0.1:80"), https: at("127.0.0.1:443") });
        check(&["--no-ingress"], IngressAddresses::LeftOut);
        let http = Some(at("127.0.0.1:8081"));
        check(&["-p", "8081:80"], IngressAddresses::Published { http, https: None });
        let both = IngressAddresses::Published { http, https: Some(at("127.0.0.1:8444")) };
        check(&["--publish", "8081:80,8444:443"], both);
        for refused in
            [&["--no-ingress", "-p", "8081:80"][..], &["-p", "8081:80", "--ingress-addr", "127.0.0.1:1"]]
        {
            assert!(Line::try_parse_from([&["up"], refused].concat()).is_err(), "{refused:?}");
        }
        let twice = Line::parse_from(["up", "-p", "8081:80", "-p", "8082:80"]).args.addresses();
        let expect = "--publish names port 80 more than once; 127.0.0.1:8082 is one address too many";
        assert_eq!(twice.unwrap_err().to_string(), expect);
    }
}
