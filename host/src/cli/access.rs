//! The flags of `wasmk up` that say who may use the API; named as kube-apiserver names them.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use wasmk_apiserver::{
    Accounts, AdmissionPlugins, Authentication, Authorization, Authorizer, Oidc, RequestHeader, audit,
};

use crate::access::{self, Access};

/// Names of repeated headers that are usual.
const USERNAME_HEADER: &str = "X-Remote-User";
const UID_HEADER: &str = "X-Remote-Uid";
const GROUP_HEADER: &str = "X-Remote-Group";
const EXTRA_PREFIX: &str = "X-Remote-Extra-";

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Authentication")]
pub(super) struct AccessArgs {
    /// More authorities of client certificates (PEM); the cluster's own stays one
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Static tokens: lines of `token,user,uid,"group,group"`
    #[arg(long, value_name = "FILE")]
    token_auth_file: Option<PathBuf>,
    /// Removed in Kubernetes 1.19
    #[arg(long, value_name = "FILE", hide = true)]
    basic_auth_file: Option<PathBuf>,
    /// Whether requests without credentials are `system:anonymous`
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    anonymous_auth: bool,
    #[command(flatten)]
    oidc: OidcArgs,
    #[command(flatten)]
    review: ReviewArgs,
    #[command(flatten)]
    header: HeaderArgs,
    #[command(flatten)]
    accounts: AccountArgs,
    #[command(flatten)]
    authorization: AuthorizationArgs,
    #[command(flatten)]
    audit: AuditArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct OidcArgs {
    /// Issuer of OpenID Connect tokens
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// Audience the tokens must be for
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    oidc_client_id: Option<String>,
    /// Claim with the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    oidc_username_claim: String,
    /// What is put before user names; `-` for nothing [default: the issuer and `#`, for claims other than `email`]
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true)]
    oidc_username_prefix: Option<String>,
    /// Claim with the user's groups
    #[arg(long, value_name = "CLAIM", default_value = "")]
    oidc_groups_claim: String,
    /// What is put before groups
    #[arg(long, value_name = "PREFIX", default_value = "")]
    oidc_groups_prefix: String,
    /// Authority of the issuer's server (PEM) [default: what this machine trusts]
    #[arg(long, value_name = "FILE")]
    oidc_ca_file: Option<PathBuf>,
    /// Claim that must have a value; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    oidc_required_claim: Vec<(String, String)>,
    /// Accepted signature algorithms
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct ReviewArgs {
    /// Kubeconfig of a service that is asked about unknown tokens
    #[arg(long, value_name = "FILE")]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long its answers hold
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    authentication_token_webhook_cache_ttl: Duration,
    /// Version of the TokenReviews it is sent
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    authentication_token_webhook_version: String,
}

#[derive(Clone, Debug, clap::Args)]
struct HeaderArgs {
    /// Authority of proxies that name users in headers (PEM) [default: the cluster's own for that purpose]
    #[arg(long, value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names their certificates may have; empty for any
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = USERNAME_HEADER)]
    requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = UID_HEADER)]
    requestheader_uid_headers: Vec<String>,
    /// Headers with groups
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = GROUP_HEADER)]
    requestheader_group_headers: Vec<String>,
    /// What headers with more about the user begin with
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = EXTRA_PREFIX)]
    requestheader_extra_headers_prefix: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct AccountArgs {
    /// Issuer of service accounts' tokens; the first signs, the others are accepted
    #[arg(long, value_name = "URL")]
    service_account_issuer: Vec<String>,
    /// More keys that verify service accounts' tokens (PEM); may be repeated
    #[arg(long, value_name = "FILE")]
    service_account_key_file: Vec<PathBuf>,
    /// The key that signs them (PEM) [default: the cluster's own]
    #[arg(long, value_name = "FILE")]
    service_account_signing_key_file: Option<PathBuf>,
    /// The longest life such a token may be asked for
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    service_account_max_token_expiration: Option<Duration>,
    /// Whether tokens of pods hold a year, for clients that do not read them again
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    service_account_extend_token_expiration: bool,
    /// Audiences of the API [default: the issuer]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    api_audiences: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Authorization and admission")]
struct AuthorizationArgs {
    /// Authorizers that are asked, in order: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "Node,RBAC", value_parser = authorizer)]
    authorization_mode: Vec<Authorizer>,
    /// Policies of ABAC, a JSON object a line
    #[arg(long, value_name = "FILE")]
    authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig of the service that Webhook asks
    #[arg(long, value_name = "FILE")]
    authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews it is sent
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    authorization_webhook_version: String,
    /// How long its allowing answers hold
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    authorization_webhook_cache_authorized_ttl: Duration,
    /// How long its other answers hold
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Admission plugins to have besides those that are on by default
    #[arg(long, value_name = "LIST", value_delimiter = ',', alias = "admission-control")]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins to do without
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
struct AuditArgs {
    /// What is kept of requests (an audit.k8s.io/v1 Policy)
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// Where events are written, one a line; `-` for standard output
    #[arg(long, value_name = "FILE", requires = "audit_policy_file", allow_hyphen_values = true)]
    audit_log_path: Option<PathBuf>,
    /// Days full logs are kept; 0 for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u64,
    /// How many full logs are kept; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes after which a log is full; 0 for never
    #[arg(long, value_name = "MB", default_value_t = 0)]
    audit_log_maxsize: u64,
    /// Kubeconfig of a service that is sent events
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_webhook_config_file: Option<PathBuf>,
    /// Most events sent at once
    #[arg(long, value_name = "N", default_value_t = 400)]
    audit_webhook_batch_max_size: usize,
    /// Longest wait of an event for others to be sent with
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    audit_webhook_batch_max_wait: Duration,
    /// Most events that wait to be sent; more are lost
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    audit_webhook_batch_buffer_size: usize,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE was expected")?;
    Ok((key.into(), value.into()))
}

/// A time such as `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = wasmk_api::parse_duration(text).and_then(|span| Duration::try_from(span).ok());
    parsed.ok_or_else(|| "a time such as `90s` or `1h30m` was expected".to_owned())
}

fn authorizer(text: &str) -> Result<Authorizer, String> {
    let known = Authorizer::NAMES.iter().find(|(name, _)| *name == text);
    known.map(|(_, mode)| *mode).ok_or_else(|| {
        let names: Vec<&str> = Authorizer::NAMES.iter().map(|(name, _)| *name).collect();
        format!("one of {} was expected", names.join(", "))
    })
}

impl AccessArgs {
    /// Reads the files the flags name.
    ///
    /// # Errors
    /// When one cannot be used, or flags contradict each other.
    pub(super) fn read(&self) -> Result<Access> {
        if self.basic_auth_file.is_some() {
            bail!(
                "--basic-auth-file: passwords in a file were removed in Kubernetes 1.19; use --token-auth-file, client certificates or --oidc-issuer-url"
            );
        }
        let tokens = self.token_auth_file.as_deref().map(access::tokens).transpose()?.unwrap_or_default();
        Ok(Access {
            tokens,
            client_ca: self.client_ca_file.as_deref().map(access::certificates).transpose()?,
            request_header: self.header.read()?,
            authentication: Authentication {
                anonymous: self.anonymous_auth,
                oidc: self.oidc.read()?,
                webhook: self.review.read()?,
                accounts: self.accounts.read()?,
            },
            authorization: self.authorization.read()?,
            admission: AdmissionPlugins::choose(
                &self.authorization.enable_admission_plugins,
                &self.authorization.disable_admission_plugins,
            )?,
            audit: self.audit.read()?,
            issuer: self.accounts.service_account_issuer.first().cloned(),
            signing_key: self
                .accounts
                .service_account_signing_key_file
                .as_deref()
                .map(access::read)
                .transpose()?,
        })
    }
}

impl OidcArgs {
    fn read(&self) -> Result<Option<Oidc>> {
        let (Some(issuer), Some(client_id)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            return Ok(None);
        };
        if !issuer.starts_with("https://") {
            bail!("--oidc-issuer-url: an https:// URL was expected, found {issuer}");
        }
        Ok(Some(Oidc {
            issuer: issuer.clone(),
            client_id: client_id.clone(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            ca: self.oidc_ca_file.as_deref().map(access::certificates).transpose()?,
            required: self.oidc_required_claim.clone(),
            algorithms: self.oidc_signing_algs.clone(),
        }))
    }
}

impl ReviewArgs {
    fn read(&self) -> Result<Option<wasmk_apiserver::Webhook>> {
        let ttl = self.authentication_token_webhook_cache_ttl;
        let version = &self.authentication_token_webhook_version;
        let file = self.authentication_token_webhook_config_file.as_ref();
        file.map(|file| access::webhook(file, version, ttl, ttl)).transpose()
    }
}

impl HeaderArgs {
    fn read(&self) -> Result<Option<RequestHeader>> {
        let Some(file) = &self.requestheader_client_ca_file else { return Ok(None) };
        Ok(Some(RequestHeader {
            ca: access::certificates(file)?,
            allowed_names: self.requestheader_allowed_names.clone(),
            username: self.requestheader_username_headers.clone(),
            uid: self.requestheader_uid_headers.clone(),
            group: self.requestheader_group_headers.clone(),
            extra_prefix: self.requestheader_extra_headers_prefix.clone(),
        }))
    }
}

impl AccountArgs {
    fn read(&self) -> Result<Accounts> {
        let keys = self.service_account_key_file.iter().map(|path| access::read(path));
        Ok(Accounts {
            more_issuers: self.service_account_issuer.iter().skip(1).cloned().collect(),
            more_keys: keys.collect::<Result<_>>()?,
            audiences: self.api_audiences.clone(),
            max_life: self.service_account_max_token_expiration,
            never_extend: !self.service_account_extend_token_expiration,
        })
    }
}

impl AuthorizationArgs {
    fn read(&self) -> Result<Authorization> {
        let modes = self.authorization_mode.clone();
        let uses = |mode| modes.contains(&mode);
        let policy = match &self.authorization_policy_file {
            Some(file) if uses(Authorizer::Abac) => access::policy(file)?,
            Some(_) => bail!("--authorization-policy-file is for --authorization-mode=ABAC"),
            None if uses(Authorizer::Abac) => {
                bail!("--authorization-mode=ABAC needs --authorization-policy-file")
            }
            None => wasmk_apiserver::AbacPolicy::default(),
        };
        let webhook = match &self.authorization_webhook_config_file {
            Some(file) if uses(Authorizer::Webhook) => Some(access::webhook(
                file,
                &self.authorization_webhook_version,
                self.authorization_webhook_cache_authorized_ttl,
                self.authorization_webhook_cache_unauthorized_ttl,
            )?),
            Some(_) => bail!("--authorization-webhook-config-file is for --authorization-mode=Webhook"),
            None if uses(Authorizer::Webhook) => {
                bail!("--authorization-mode=Webhook needs --authorization-webhook-config-file")
            }
            None => None,
        };
        Ok(Authorization { modes, policy, webhook })
    }
}

impl AuditArgs {
    fn read(&self) -> Result<Option<audit::Settings>> {
        let Some(policy) = &self.audit_policy_file else { return Ok(None) };
        let file = self.audit_log_path.as_ref().map(|path| audit::FileSettings {
            path: path.clone(),
            max_megabytes: self.audit_log_maxsize,
            max_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
        });
        let service = match &self.audit_webhook_config_file {
            None => None,
            Some(path) => Some(audit::ServiceSettings {
                config: access::kubeconfig(path)?,
                buffer: self.audit_webhook_batch_buffer_size,
                batch: self.audit_webhook_batch_max_size,
                wait: self.audit_webhook_batch_max_wait,
            }),
        };
        if file.is_none() && service.is_none() {
            bail!("--audit-policy-file needs --audit-log-path or --audit-webhook-config-file");
        }
        Ok(Some(audit::Settings { policy: access::audit_policy(policy)?, file, service }))
    }
}
