//! Conversion webhooks: custom resources in other versions than the one they are stored in.
//!
//! What a webhook made of a stored object is kept under the object's revision, in the form of a cache entry, so that
//! reading it again costs nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use wasmk_api::{Gvk, Object, Status};

use super::version::text;
use crate::{
    cache::{self, Entry, Reader},
    remote::Endpoint,
    server::Core,
};

/// Longest wait for a webhook.
const WITHIN: Duration = Duration::from_secs(30);
/// Most objects of one request to a webhook.
const MAX_BATCH: usize = 500;
/// Most converted objects that are kept for one definition.
const MAX_KEPT: usize = 20_000;

/// What converted entries are kept under: key, revision, version.
type Place = (Box<str>, u64, String);

/// The webhook of a definition.
#[derive(Debug)]
pub(crate) struct Converter {
    definition: String,
    config: Value,
    review: String,
    kept: Mutex<HashMap<Place, Arc<Entry>>>,
}

impl Converter {
    /// Of a definition whose versions are converted by a webhook.
    pub(super) fn read(definition: &Object) -> Option<Arc<Self>> {
        let conversion = definition.at(&["spec", "conversion"])?;
        if text(conversion, "/strategy") != "Webhook" {
            return None;
        }
        let versions = conversion.pointer("/webhook/conversionReviewVersions").and_then(Value::as_array);
        let known = versions.into_iter().flatten().filter_map(Value::as_str);
        let review = known.into_iter().find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
        Some(Arc::new(Self {
            definition: definition.name().into(),
            config: conversion.pointer("/webhook/clientConfig").cloned().unwrap_or_default(),
            review: review.into(),
            kept: Mutex::default(),
        }))
    }

    /// Entries in a version: those that are stored in another one are converted.
    ///
    /// # Errors
    /// When the webhook fails.
    pub(crate) async fn entries(
        &self,
        core: &Core,
        entries: Vec<Arc<Entry>>,
        gvk: &Gvk,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let version = gvk.api_version();
        let place = |e: &Entry| (cache::key(&e.namespace, &e.name).into(), e.revision, version.clone());
        let mut all = entries;
        let missing: Vec<usize> = {
            let kept = self.kept.lock();
            let foreign = all.iter_mut().enumerate().filter(|(_, e)| !e.is_version(&version));
            foreign
                .filter_map(|(at, entry)| match kept.get(&place(entry)) {
                    Some(known) => {
                        *entry = known.clone();
                        None
                    }
                    None => Some(at),
                })
                .collect()
        };
        for some in missing.chunks(MAX_BATCH) {
            let objects = some.iter().map(|at| all[*at].object()).collect();
            let converted = self.objects(core, objects, gvk).await?;
            let mut kept = self.kept.lock();
            if kept.len() + some.len() > MAX_KEPT {
                kept.clear();
            }
            for (at, object) in some.iter().zip(converted) {
                let entry = &all[*at];
                let key = cache::key(&entry.namespace, &entry.name);
                let read = Entry::read(&key, &cache::encode(&object), entry.revision, Reader::Plain);
                let read = read.ok_or_else(|| self.failed(gvk, "a converted object cannot be read"))?;
                let read = Arc::new(read);
                kept.insert(place(entry), read.clone());
                all[*at] = read;
            }
        }
        Ok(all)
    }

    /// Objects in a version.
    ///
    /// # Errors
    /// When the webhook fails, or answers what cannot be used.
    pub(crate) async fn objects(
        &self,
        core: &Core,
        objects: Vec<Object>,
        gvk: &Gvk,
    ) -> Result<Vec<Object>, Status> {
        let failed = |why: String| self.failed(gvk, &why);
        let uid = uuid::Uuid::new_v4().to_string();
        let api_version = format!("apiextensions.k8s.io/{}", self.review);
        let review = json!({
            "kind": "ConversionReview", "apiVersion": api_version,
            "request": { "uid": uid, "desiredAPIVersion": gvk.api_version(), "objects": objects },
        });
        let endpoint = Endpoint::of_client_config(core, &self.config).map_err(failed)?;
        let body = serde_json::to_vec(&review).map_err(|e| failed(e.to_string()))?;
        let query = format!("timeout={}s", WITHIN.as_secs());
        let sent = core.remote.send(&endpoint, &query, &[], Some(body), WITHIN).await;
        let (code, body) = sent.map_err(failed)?;
        if !code.is_success() {
            return Err(failed(format!("the webhook answers with {}", code.as_u16())));
        }
        let answer: Value = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
        if text(&answer, "/response/uid") != uid {
            return Err(failed(format!(
                "expected response.uid={uid:?}, got {:?}",
                text(&answer, "/response/uid")
            )));
        }
        if text(&answer, "/response/result/status") != "Success" {
            let why = match text(&answer, "/response/result/message") {
                "" => "no reason provided in response.result.message",
                why => why,
            };
            return Err(failed(why.into()));
        }
        let converted = answer.pointer("/response/convertedObjects").and_then(Value::as_array);
        let converted = converted.cloned().unwrap_or_default();
        if converted.len() != objects.len() {
            return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
        }
        let pairs = objects.into_iter().zip(converted);
        pairs.map(|(old, new)| checked(&old, new, gvk).map_err(failed)).collect()
    }

    fn failed(&self, gvk: &Gvk, why: &str) -> Status {
        tracing::debug!(definition = self.definition, why, "a conversion webhook failed");
        Status::internal(format!(
            "conversion webhook for {}/{}, Kind={} failed: {why}",
            gvk.group, gvk.version, gvk.kind
        ))
    }
}

/// A converted object: of the metadata, only labels and annotations are the webhook's to change.
fn checked(old: &Object, new: Value, gvk: &Gvk) -> Result<Object, String> {
    let mut new = Object::from_value(new).ok_or("returned something that is no object")?;
    if new.gvk().as_ref() != Some(gvk) {
        let (wanted, got) = (gvk.api_version(), new.api_version().to_owned());
        return Err(format!("returned invalid converted object: expected {wanted}, got {got}"));
    }
    for (what, before, after) in [
        ("name", old.name(), new.name()),
        ("namespace", old.namespace(), new.namespace()),
        ("UID", old.uid(), new.uid()),
    ] {
        if before != after {
            return Err(format!(
                "returned invalid metadata: must have the same {what}: {before:?} != {after:?}"
            ));
        }
    }
    let mut metadata = old.metadata().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        match new.metadata().and_then(|m| m.get(key)).filter(|v| !v.is_null()) {
            Some(value) => drop(metadata.insert(key.into(), value.clone())),
            None => drop(metadata.shift_remove(key)),
        }
    }
    new.0.insert("metadata".into(), Value::Object(metadata));
    Ok(new)
}
