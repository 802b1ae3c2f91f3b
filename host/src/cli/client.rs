//! What every client command needs: which cluster, as whom, in which namespace.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kube::{
    Client, Config,
    client::{ClientBuilder, DynBody},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use tower::util::MapResponseLayer;

use super::{hint::WithHint, output::Output, warnings};

/// Flags that every command accepts, before or after its name.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Global {
    /// The kubeconfig file to use
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE", help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    context: Option<String>,
    /// The namespace to act in
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Cluster")]
    namespace: Option<String>,
    /// The cluster of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    cluster: Option<String>,
    /// The user of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    user: Option<String>,
    /// The API server's address
    #[arg(short, long, global = true, value_name = "URL", help_heading = "Cluster")]
    server: Option<String>,
    /// Do not check the server's certificate
    #[arg(long, global = true, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", action = clap::ArgAction::Set, help_heading = "Cluster")]
    insecure_skip_tls_verify: bool,
    /// A bearer token, in place of the user's credentials
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Cluster")]
    token: Option<String>,
    /// Act as that user
    #[arg(long = "as", global = true, value_name = "USER", help_heading = "Cluster")]
    act_as: Option<String>,
    /// Act as a member of that group; may be repeated
    #[arg(long, global = true, value_name = "GROUP", help_heading = "Cluster")]
    as_group: Vec<String>,
}

/// The flags that say which cluster, as they were given.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) cluster: Option<String>,
    pub(super) user: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) server: Option<String>,
    pub(super) token: Option<String>,
    pub(super) insecure: bool,
}

/// The command's surroundings: the chosen cluster and the output.
#[derive(Debug)]
pub struct Context {
    global: Global,
    /// Where to print.
    pub out: Output,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        Self { global, out: Output::default() }
    }

    /// The namespace of `--namespace`, if it was given.
    pub fn chosen_namespace(&self) -> Option<&str> {
        self.global.namespace.as_deref()
    }

    /// The same without `--user`, where that word means something else.
    pub(super) fn as_own_user(&self) -> Self {
        Self { global: Global { user: None, ..self.global.clone() }, out: Output::default() }
    }

    /// The flags that say which cluster.
    pub(super) fn chosen(&self) -> Chosen {
        let global = self.global.clone();
        Chosen {
            cluster: global.cluster,
            user: global.user,
            namespace: global.namespace,
            server: global.server,
            token: global.token,
            insecure: global.insecure_skip_tls_verify,
        }
    }

    /// The kubeconfig to read: `--kubeconfig`, `KUBECONFIG`, `~/.kube/config` when it is there, else
    /// the one that `wasmk up` keeps in the default data directory.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        if let Some(path) = &self.global.kubeconfig {
            return path.clone();
        }
        let usual = home().join(".kube/config");
        if usual.exists() { usual } else { default_data_dir().join("kubeconfig") }
    }

    /// The context of `--context`, if it was given.
    pub(super) fn chosen_context(&self) -> Option<&str> {
        self.global.context.as_deref()
    }

    /// A client of the chosen cluster, with the namespace to act in.
    ///
    /// # Errors
    /// When there is no such kubeconfig or context, or a certificate in it cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let tell = MapResponseLayer::new(warnings::tell::<Box<DynBody>>);
        Ok(ClientBuilder::try_from(self.kube_config().await?)?.with_layer(&tell).build())
    }

    /// How the chosen cluster is reached. Inside a pod, without any kubeconfig, as its service account.
    ///
    /// # Errors
    /// As those of [`Context::client`].
    pub(super) async fn kube_config(&self) -> Result<Config> {
        let path = self.kubeconfig();
        if !path.exists()
            && self.global.kubeconfig.is_none()
            && let Ok(config) = Config::incluster()
        {
            return self.overridden(config);
        }
        let config = self.config(&path).await?;
        self.overridden(config)
    }

    /// With what the flags say for this command alone.
    fn overridden(&self, mut config: Config) -> Result<Config> {
        let global = &self.global;
        if let Some(server) = &global.server {
            config.cluster_url = server.parse().with_context(|| format!("--server {server} is not a URL"))?;
        }
        if global.insecure_skip_tls_verify {
            config.accept_invalid_certs = true;
        }
        if let Some(token) = &global.token {
            config.auth_info = AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() };
        }
        if global.act_as.is_some() {
            config.auth_info.impersonate.clone_from(&global.act_as);
            config.auth_info.impersonate_groups = Some(global.as_group.clone()).filter(|g| !g.is_empty());
        }
        if let Some(namespace) = &global.namespace {
            config.default_namespace.clone_from(namespace);
        }
        Ok(config)
    }

    async fn config(&self, path: &Path) -> Result<Config> {
        let kubeconfig = Kubeconfig::read_from(path)
            .with_context(|| format!("cannot read the kubeconfig {}", path.display()))
            .hint(|| "start a cluster with `wasmk up`, or name a kubeconfig with --kubeconfig".into())?;
        let (cluster, user) = (&self.global.cluster, &self.global.user);
        if let Some(name) = cluster.as_ref().filter(|n| !kubeconfig.clusters.iter().any(|c| c.name == **n)) {
            bail!("no server found for cluster \"{name}\"");
        }
        if let Some(name) = user.as_ref().filter(|n| !kubeconfig.auth_infos.iter().any(|u| u.name == **n)) {
            bail!("auth info \"{name}\" does not exist");
        }
        let options = KubeConfigOptions {
            context: self.global.context.clone(),
            cluster: self.global.cluster.clone(),
            user: self.global.user.clone(),
        };
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("cannot use the kubeconfig {}", path.display()))
    }
}

/// The user's home directory, or the current one when there is none.
pub(super) fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| ".".into(), PathBuf::from)
}

/// `~/.wasmk`.
pub(super) fn default_data_dir() -> PathBuf {
    home().join(".wasmk")
}
