//! Whether somebody may do something: the authorizers in their order, and impersonation.

use std::sync::Arc;

use wasmk_api::{GroupResource, Reason, Status};

use crate::{
    auth::{
        Attributes, Decision, Rbac, RemoteError, User, abac,
        access_review::AccessReviewer,
        node,
        rules::Rule,
        settings::{Authorization, Authorizer},
        user::{self, MASTERS},
    },
    bootstrap,
    cache::Caches,
    server::Core,
};

/// One authorizer that is asked.
enum Asked {
    Node(node::Nodes),
    Rbac(Arc<Rbac>),
    Abac(abac::Policy),
    Webhook(Box<AccessReviewer>),
    Always(bool),
}

/// The authorizers that are asked, in order, until one allows or refuses.
pub(crate) struct Authorizers(Vec<Asked>);

impl Authorizers {
    /// As the settings say.
    ///
    /// # Errors
    /// When the webhook's kubeconfig cannot be used.
    pub(crate) async fn new(
        caches: &Caches,
        rbac: &Arc<Rbac>,
        settings: Authorization,
    ) -> Result<Self, RemoteError> {
        let mut webhook = settings.webhook;
        let mut all = Vec::new();
        for mode in settings.modes {
            all.push(match mode {
                Authorizer::Node => Asked::Node(node::Nodes::new(caches, bootstrap::rules_of("system:node"))),
                Authorizer::Rbac => Asked::Rbac(rbac.clone()),
                Authorizer::Abac => Asked::Abac(settings.policy.clone()),
                Authorizer::Webhook => match webhook.take() {
                    Some(webhook) => Asked::Webhook(Box::new(AccessReviewer::new(webhook).await?)),
                    None => return Err(RemoteError::Config("the webhook has none".into())),
                },
                Authorizer::AlwaysAllow => Asked::Always(true),
                Authorizer::AlwaysDeny => Asked::Always(false),
            });
        }
        Ok(Self(all))
    }

    /// Whether somebody is asked whose answer takes its time.
    pub(crate) fn may_wait(&self) -> bool {
        self.0.iter().any(|authorizer| matches!(authorizer, Asked::Webhook(_)))
    }

    /// Decides. Administrators may do everything, whoever else is asked.
    pub(crate) async fn decide(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::allow("");
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            let decision = match authorizer {
                Asked::Node(nodes) => nodes.authorize(user, asked),
                Asked::Rbac(rbac) => rbac.authorize(user, asked),
                Asked::Abac(policy) if policy.allows(user, asked) => Decision::allow(""),
                Asked::Abac(_) => Decision::no_opinion("No policy matched."),
                Asked::Webhook(service) => service.authorize(user, asked).await,
                Asked::Always(true) => Decision::allow(""),
                Asked::Always(false) => Decision::no_opinion("Everything is forbidden."),
            };
            if decision.allowed || decision.denied {
                return decision;
            }
            if !decision.reason.is_empty() {
                reasons.push(decision.reason);
            }
        }
        Decision::no_opinion(reasons.join("\n"))
    }

    /// Every rule somebody has in a namespace, and what could not be found out.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Known {
        let mut known = Known::default();
        let star = || vec!["*".to_owned()];
        let everything = || {
            [
                Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() },
                Rule { verbs: star(), urls: star(), ..Rule::default() },
            ]
        };
        if user.is_in(MASTERS) {
            known.rules.extend(everything());
        }
        for authorizer in &self.0 {
            match authorizer {
                Asked::Rbac(rbac) => {
                    let (rules, broken) = rbac.rules(user, namespace);
                    known.rules.extend(rules);
                    known.errors.extend(broken);
                }
                Asked::Abac(policy) => known.rules.extend(policy.rules(user, namespace)),
                Asked::Always(true) => known.rules.extend(everything()),
                Asked::Always(false) => {}
                Asked::Node(_) if node::identity(user).is_none() => {}
                Asked::Node(_) => known.unsupported("node"),
                Asked::Webhook(_) => known.unsupported("webhook"),
            }
        }
        known
    }
}

/// What is known of somebody's rules.
#[derive(Default)]
pub(crate) struct Known {
    /// The rules.
    pub(crate) rules: Vec<Rule>,
    /// What went wrong.
    pub(crate) errors: Vec<String>,
    /// Whether there may be more that no authorizer can list.
    pub(crate) incomplete: bool,
}

impl Known {
    fn unsupported(&mut self, authorizer: &str) {
        self.incomplete = true;
        self.errors.push(format!("{authorizer} authorizer does not support user rule resolution"));
    }
}

/// Decides.
pub(crate) async fn decide(core: &Core, user: &User, asked: &Attributes<'_>) -> Decision {
    core.authorizers.decide(user, asked).await
}

/// # Errors
/// 403 in Kubernetes' words.
pub(crate) async fn require(core: &Core, user: &User, asked: &Attributes<'_>) -> Result<(), Status> {
    let decision = decide(core, user, asked).await;
    if decision.allowed { Ok(()) } else { Err(forbidden(user, asked, &decision.reason)) }
}

/// The refusal of a request.
pub(crate) fn forbidden(user: &User, asked: &Attributes<'_>, reason: &str) -> Status {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !asked.is_resource {
        let message =
            format!("forbidden: User {:?} cannot {} path {:?}{reason}", user.name, asked.verb, asked.path);
        return Status::new(Reason::Forbidden, message);
    }
    let full = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let why = format!(
        "User {:?} cannot {} resource {full:?} in API group {:?} {place}{reason}",
        user.name, asked.verb, asked.group
    );
    Status::forbidden(&GroupResource::new(asked.group, asked.resource), asked.name, &why)
}

/// Checks that `real` may act as `wanted`; the user to act as.
///
/// # Errors
/// 403 for the first thing it may not impersonate.
pub(crate) async fn impersonate(core: &Core, real: &User, mut wanted: User) -> Result<User, Status> {
    let base = Attributes { verb: "impersonate", is_resource: true, ..Attributes::default() };
    let authentication = Attributes { group: "authentication.k8s.io", version: "v1", ..base };
    let mut questions = vec![match wanted.as_service_account() {
        Some((namespace, name)) => {
            Attributes { version: "v1", resource: "serviceaccounts", namespace, name, ..base }
        }
        None => Attributes { version: "v1", resource: "users", name: &wanted.name, ..base },
    }];
    questions.extend(wanted.groups.iter().map(|name| Attributes {
        version: "v1",
        resource: "groups",
        name,
        ..base
    }));
    for (key, values) in &wanted.extra {
        let about = Attributes { resource: "userextras", subresource: key, ..authentication };
        questions.extend(values.iter().map(|name| Attributes { name, ..about }));
    }
    if !wanted.uid.is_empty() {
        questions.push(Attributes { resource: "uids", name: &wanted.uid, ..authentication });
    }
    for question in &questions {
        require(core, real, question).await?;
    }
    drop(questions);
    if let (true, Some((namespace, name))) = (wanted.groups.is_empty(), wanted.as_service_account()) {
        wanted.groups = User::service_account(namespace, name).groups;
    }
    let basic = if wanted.name == user::ANONYMOUS { user::UNAUTHENTICATED } else { user::AUTHENTICATED };
    if !wanted.groups.iter().any(|g| g == user::AUTHENTICATED || g == user::UNAUTHENTICATED) {
        wanted.groups.push(basic.into());
    }
    Ok(wanted)
}
