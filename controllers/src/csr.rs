//! Approves and signs the certificate requests of nodes, and clears old requests away.
//!
//! Reads certificate signing requests and nodes. Writes their conditions and certificates,
//! deletes old ones. A client certificate is approved for who may ask for one (as
//! authorization says of `nodeclient` and `selfnodeclient`); a serving certificate for a
//! node that asks for its own addresses.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{
            CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
        },
        core::v1::Node,
    },
};
use kube::{Api, api::PostParams};
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use wasmk_api::Timestamp;

use crate::base::{Context, Error, Informer, Key, Next, Queue, Result, on_change, time_of};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const ANY_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// How long a certificate holds when nobody says, and at most.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest lifetime that can be asked for.
const MIN_LIFETIME: Duration = Duration::from_secs(600);
/// Clocks may differ by that much.
const BACKDATE: Duration = Duration::from_secs(300);
/// Answered requests are kept that long, unanswered ones longer.
const KEEP_ANSWERED: Duration = Duration::from_secs(3600);
const KEEP_PENDING: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run_approver(cx: Context) {
    let (queue, requests) = subscribe(&cx).await;
    let nodes = cx.cache::<Node>();
    nodes.ready().await;
    cx.work("certificatesigningrequest-approving-controller", &queue, 1, |key| {
        approve(&cx, &requests, &nodes, key)
    })
    .await;
}

pub(crate) async fn run_signer(cx: Context) {
    if cx.settings.ca_key_pem.is_empty() {
        return;
    }
    let (queue, requests) = subscribe(&cx).await;
    cx.work("certificatesigningrequest-signing-controller", &queue, 1, |key| sign(&cx, &requests, key)).await;
}

pub(crate) async fn run_cleaner(cx: Context) {
    let (queue, requests) = subscribe(&cx).await;
    cx.work("certificatesigningrequest-cleaner-controller", &queue, 1, |key| clean(&cx, &requests, key))
        .await;
}

async fn subscribe(cx: &Context) -> (Arc<Queue<Key>>, Arc<Informer<CertificateSigningRequest>>) {
    let queue = Arc::new(Queue::default());
    let requests = cx.cache::<CertificateSigningRequest>();
    on_change(&requests, &queue);
    requests.ready().await;
    (queue, requests)
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind)
}

fn is_signed(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().is_some_and(|s| s.certificate.as_ref().is_some_and(|c| !c.0.is_empty()))
}

/// A request as it was read out of its PEM text.
struct Wanted {
    name: String,
    groups: Vec<String>,
    dns: Vec<String>,
    addresses: Vec<String>,
    other_names: bool,
}

fn read(spec: &CertificateSigningRequestSpec) -> Option<(Wanted, CertificateSigningRequestParams)> {
    let pem = std::str::from_utf8(&spec.request.0).ok()?;
    let request = CertificateSigningRequestParams::from_pem(pem).ok()?;
    let text = |value: &DnValue| match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        _ => String::new(),
    };
    let mut wanted = Wanted {
        name: String::new(),
        groups: Vec::new(),
        dns: Vec::new(),
        addresses: Vec::new(),
        other_names: false,
    };
    for (kind, value) in request.params.distinguished_name.iter() {
        match kind {
            DnType::CommonName => wanted.name = text(value),
            DnType::OrganizationName => wanted.groups.push(text(value)),
            _ => {}
        }
    }
    for name in &request.params.subject_alt_names {
        match name {
            SanType::DnsName(name) => wanted.dns.push(name.as_str().to_owned()),
            SanType::IpAddress(address) => wanted.addresses.push(address.to_string()),
            _ => wanted.other_names = true,
        }
    }
    Some((wanted, request))
}

/// Whether the request is one a node makes: its name, its group, the usages of that signer.
fn is_node_request(spec: &CertificateSigningRequestSpec, wanted: &Wanted) -> bool {
    let usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let (needed, own_names) = match &*spec.signer_name {
        CLIENT => ("client auth", wanted.dns.is_empty() && wanted.addresses.is_empty()),
        SERVING => ("server auth", !(wanted.dns.is_empty() && wanted.addresses.is_empty())),
        _ => return false,
    };
    let allowed = ["digital signature", "key encipherment", needed];
    wanted.groups == ["system:nodes"]
        && wanted.name.strip_prefix("system:node:").is_some_and(|n| !n.is_empty())
        && own_names
        && !wanted.other_names
        && usages.contains(&needed)
        && usages.contains(&"digital signature")
        && usages.iter().all(|u| allowed.contains(u))
}

async fn approve(
    cx: &Context,
    requests: &Informer<CertificateSigningRequest>,
    nodes: &Informer<Node>,
    key: Key,
) -> Result<Next> {
    let Some(request) = requests.get(&key) else { return Ok(Next::Change) };
    if is_signed(&request) || has(&request, "Approved") || has(&request, "Denied") {
        return Ok(Next::Change);
    }
    let Some((wanted, _)) = read(&request.spec).filter(|(w, _)| is_node_request(&request.spec, w)) else {
        return Ok(Next::Change);
    };
    let own = request.spec.username.as_deref() == Some(&*wanted.name);
    let (allowed, message) = match (&*request.spec.signer_name, own) {
        (SERVING, true) => (
            names_are_own(&wanted, nodes),
            "Auto approving kubelet serving certificate for the node's own addresses.",
        ),
        (SERVING, false) => (false, ""),
        (_, true) => (
            may(cx, &request.spec, "selfnodeclient").await? || may(cx, &request.spec, "nodeclient").await?,
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        ),
        (_, false) => (
            may(cx, &request.spec, "nodeclient").await?,
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        ),
    };
    if !allowed {
        return Ok(Next::Change);
    }
    let mut next = (*request).clone();
    next.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            ..Default::default()
        },
    );
    let api: Api<CertificateSigningRequest> = Api::all(cx.client.clone());
    let written = api.replace_subresource("approval", &key.name, &PostParams::default(), &next).await;
    let written = written.map_err(|e| Error::api("approve", "CertificateSigningRequest", key, e))?;
    requests.assume(written);
    Ok(Next::Change)
}

/// Whether all names in the request are among the node's addresses.
fn names_are_own(wanted: &Wanted, nodes: &Informer<Node>) -> bool {
    let name = wanted.name.trim_start_matches("system:node:");
    let Some(node) = nodes.get(&Key::new("", name)) else { return false };
    let listed = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let known: Vec<&str> = listed.map(|a| a.address.as_str()).chain([name]).collect();
    wanted.dns.iter().chain(&wanted.addresses).all(|n| known.contains(&n.as_str()))
}

async fn may(cx: &Context, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                verb: Some("create".into()),
                subresource: Some(subresource.into()),
                version: Some("*".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(cx.client.clone());
    let answer = api.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|e| Error::api("create", "SubjectAccessReview", Key::default(), e))?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

async fn sign(cx: &Context, requests: &Informer<CertificateSigningRequest>, key: Key) -> Result<Next> {
    let Some(request) = requests.get(&key) else { return Ok(Next::Change) };
    let wanted = has(&request, "Approved")
        && !has(&request, "Denied")
        && !has(&request, "Failed")
        && !is_signed(&request);
    if !wanted || ![CLIENT, SERVING, ANY_CLIENT].contains(&&*request.spec.signer_name) {
        return Ok(Next::Change);
    }
    let mut next = (*request).clone();
    let status = next.status.get_or_insert_default();
    let signer = match &*cx.settings.signer_pem {
        "" => &cx.settings.ca_pem,
        own => own,
    };
    match certificate(&request.spec, signer, &cx.settings.ca_key_pem, cx.clock.now()) {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(message) => status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(message),
            ..Default::default()
        }),
    }
    cx.replace_status(&next).await?;
    Ok(Next::Change)
}

/// Signs a request, PEM in, PEM out.
fn certificate(
    spec: &CertificateSigningRequestSpec,
    ca: &str,
    key: &str,
    now: Timestamp,
) -> Result<String, String> {
    let (wanted, mut request) = read(spec).ok_or("unable to parse the certificate request")?;
    if spec.signer_name != ANY_CLIENT && !is_node_request(spec, &wanted) {
        return Err(format!("the request is not one that signer {} signs", spec.signer_name));
    }
    let usages = spec.usages.iter().flatten().map(String::as_str);
    let server = usages.clone().any(|u| u == "server auth");
    if spec.signer_name == ANY_CLIENT && (server || wanted.groups.iter().any(|g| g == "system:masters")) {
        return Err("client certificates of system:masters, and for servers, are not signed".into());
    }
    let asked =
        spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(LIFETIME, Duration::from_secs);
    let params = &mut request.params;
    let today = now.0.to_zoned(jiff::tz::TimeZone::UTC).date();
    let part = |n: i8| u8::try_from(n).unwrap_or(1);
    let midnight = rcgen::date_time_ymd(today.year().into(), part(today.month()), part(today.day()));
    let seconds = u64::try_from(now.0.as_second().rem_euclid(86_400)).unwrap_or(0);
    let start = midnight + Duration::from_secs(seconds);
    params.not_before = start - BACKDATE;
    params.not_after = start + asked.clamp(MIN_LIFETIME, LIFETIME);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if usages.clone().any(|u| u == "key encipherment") {
        params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    }
    params.extended_key_usages =
        vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
    let key = KeyPair::from_pem(key).map_err(|e| format!("the signing key is unusable: {e}"))?;
    let issuer =
        Issuer::from_ca_cert_pem(ca, key).map_err(|e| format!("the signing certificate is unusable: {e}"))?;
    Ok(request.signed_by(&issuer).map_err(|e| e.to_string())?.pem())
}

async fn clean(cx: &Context, requests: &Informer<CertificateSigningRequest>, key: Key) -> Result<Next> {
    let Some(request) = requests.get(&key) else { return Ok(Next::Change) };
    let answered = ["Approved", "Denied", "Failed"].iter().any(|kind| has(&request, kind));
    let keep = if answered { KEEP_ANSWERED } else { KEEP_PENDING };
    let Some(made) = time_of(request.metadata.creation_timestamp.as_ref()) else { return Ok(Next::Change) };
    let now = cx.clock.now();
    let left = made.after(keep).since(now);
    if !left.is_zero() {
        return Ok(Next::After(left));
    }
    cx.delete(&*request, Default::default()).await?;
    Ok(Next::Change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName};

    fn request(name: &str, group: &str, san: &[&str]) -> Vec<u8> {
        let mut params =
            CertificateParams::new(san.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
    }

    fn spec(signer: &str, pem: Vec<u8>, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            request: ByteString(pem),
            signer_name: signer.into(),
            usages: Some(usages.iter().map(|u| (*u).to_owned()).collect()),
            ..Default::default()
        }
    }

    #[test]
    fn only_what_nodes_ask_for() {
        let check = |signer, name, group, san: &[&str], usages: &[&str], expect: bool| {
            let spec = spec(signer, request(name, group, san), usages);
            let (wanted, _) = read(&spec).unwrap();
            assert_eq!(is_node_request(&spec, &wanted), expect, "{signer} {name} {group} {san:?} {usages:?}");
        };
        let client = ["digital signature", "client auth"];
        check(CLIENT, "system:node:a", "system:nodes", &[], &client, true);
        check(CLIENT, "system:node:a", "system:nodes", &["a.example"], &client, false);
        check(CLIENT, "system:node:", "system:nodes", &[], &client, false);
        check(CLIENT, "admin", "system:nodes", &[], &client, false);
        check(CLIENT, "system:node:a", "system:masters", &[], &client, false);
        check(
            CLIENT,
            "system:node:a",
            "system:nodes",
            &[],
            &["digital signature", "client auth", "cert sign"],
            false,
        );
        check(
            SERVING,
            "system:node:a",
            "system:nodes",
            &["10.0.0.1"],
            &["digital signature", "server auth"],
            true,
        );
        check(SERVING, "system:node:a", "system:nodes", &[], &["digital signature", "server auth"], false);
    }

    #[test]
    fn a_signed_certificate_is_of_the_authority_and_ends() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).unwrap().pem();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = spec(
            CLIENT,
            request("system:node:a", "system:nodes", &[]),
            &["digital signature", "client auth"],
        );
        let pem = certificate(&good, &ca, &key.serialize_pem(), now).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
        let bad = spec(CLIENT, request("admin", "system:masters", &[]), &["client auth"]);
        assert!(certificate(&bad, &ca, &key.serialize_pem(), now).is_err());
        let master = spec(ANY_CLIENT, request("admin", "system:masters", &[]), &["client auth"]);
        assert!(certificate(&master, &ca, &key.serialize_pem(), now).is_err());
        assert!(certificate(&good, "nonsense", &key.serialize_pem(), now).is_err());
    }
}
