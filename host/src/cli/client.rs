//! What every client command needs: which cluster, as whom, in which namespace.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{hint::WithHint, output::Output};

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

    /// The kubeconfig to read: `--kubeconfig`, `KUBECONFIG`, `~/.kube/config` when it is there, else
    /// the one that `wasmk up` keeps in the default data directory.
    fn kubeconfig(&self) -> PathBuf {
        if let Some(path) = &self.global.kubeconfig {
            return path.clone();
        }
        let usual = home().join(".kube/config");
        if usual.exists() { usual } else { default_data_dir().join("kubeconfig") }
    }

    /// A client of the chosen cluster, with the namespace to act in.
    ///
    /// # Errors
    /// When there is no such kubeconfig or context, or a certificate in it cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let config = self.config(&self.kubeconfig()).await?;
        Ok(Client::try_from(config)?)
    }

    async fn config(&self, path: &Path) -> Result<Config> {
        let kubeconfig = Kubeconfig::read_from(path)
            .with_context(|| format!("cannot read the kubeconfig {}", path.display()))
            .hint(|| "start a cluster with `wasmk up`, or name a kubeconfig with --kubeconfig".into())?;
        let options = KubeConfigOptions { context: self.global.context.clone(), ..Default::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?;
        if let Some(namespace) = &self.global.namespace {
            config.default_namespace = namespace.clone();
        }
        Ok(config)
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
