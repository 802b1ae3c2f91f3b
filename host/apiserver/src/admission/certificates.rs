//! Certificate requests and trust bundles: who may approve, sign and attest is a right of its own, per signer.

use serde_json::Value;
use wasmk_api::{Object, Status};
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer, X509Name},
};

use super::plugins::Plugin;
use crate::{
    auth::Attributes,
    authorize,
    write::{Mode, Work},
};

const REQUESTS: &str = "certificates.k8s.io/certificatesigningrequests";
const BUNDLES: &str = "certificates.k8s.io/clustertrustbundles";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

/// Checks writes of certificate requests and trust bundles.
///
/// # Errors
/// 403 for who has not the right.
pub(crate) async fn check(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let on = |plugin| work.core.config.admission.has(plugin);
    let signer = new.at(&["spec", "signerName"]).and_then(Value::as_str).unwrap_or("");
    match (&*work.resource.storage, mode) {
        (REQUESTS, Mode::Free("approval")) if on(Plugin::CertificateApproval) => {
            let signer = old.and_then(|o| o.at(&["spec", "signerName"])?.as_str()).unwrap_or(signer);
            right(work, new, "approve", signer, "approve requests with").await
        }
        (REQUESTS, Mode::Status) if on(Plugin::CertificateSigning) => {
            let part = |object: &Object, key: &str| object.at(&["status", key]).cloned();
            let old = old.cloned().unwrap_or_default();
            if ["certificate", "conditions"].iter().all(|key| part(new, key) == part(&old, key)) {
                return Ok(());
            }
            right(work, new, "sign", signer, "sign requests with").await
        }
        (REQUESTS, Mode::Main)
            if old.is_none() && signer == CLIENT_SIGNER && on(Plugin::CertificateSubjectRestriction) =>
        {
            if !groups(new).iter().any(|group| group == MASTERS) {
                return Ok(());
            }
            let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
            Err(Status::forbidden(&work.resource.group_resource(), new.name(), &why))
        }
        (BUNDLES, Mode::Main) if !signer.is_empty() && on(Plugin::ClusterTrustBundleAttest) => {
            right(work, new, "attest", signer, "attest for").await
        }
        _ => Ok(()),
    }
}

/// The groups a request's subject names.
fn groups(request: &Object) -> Vec<String> {
    let read = |subject: &X509Name<'_>| {
        subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect()
    };
    with_subject(request, read).unwrap_or_default()
}

/// The user a request's subject names.
pub(crate) fn common_name(request: &Object) -> Option<String> {
    with_subject(request, |subject| subject.iter_common_name().next()?.as_str().ok().map(str::to_owned))?
}

/// Reads the subject of a request; `None` when it is no request.
fn with_subject<T>(request: &Object, read: impl FnOnce(&X509Name<'_>) -> T) -> Option<T> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = request.at(&["spec", "request"]).and_then(Value::as_str)?;
    let pem = STANDARD.decode(text).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    Some(read(&parsed.certification_request_info.subject))
}

/// Whether the user has that right for a signer, by its name or by its domain.
async fn right(
    work: &Work<'_>,
    object: &Object,
    verb: &str,
    signer: &str,
    words: &str,
) -> Result<(), Status> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
    for name in [signer, &domain] {
        let asked = Attributes {
            verb,
            group: "certificates.k8s.io",
            version: "*",
            resource: "signers",
            name,
            is_resource: true,
            ..Attributes::default()
        };
        if authorize::decide(work.core, &work.call.user, &asked).await.allowed {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {words} signerName {signer:?}");
    Err(Status::forbidden(&work.resource.group_resource(), object.name(), &why))
}
