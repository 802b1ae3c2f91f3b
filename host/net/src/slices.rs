//! EndpointSlices by the Service they belong to.

use std::{collections::HashMap, sync::Arc};

use wasmk_api::{k8s_openapi::api::discovery::v1::EndpointSlice, labels::SERVICE_NAME};

/// EndpointSlices, found by Service. Those that name none are left out.
#[derive(Debug, Default)]
pub struct Slices {
    /// By namespace, then by Service.
    all: HashMap<String, HashMap<String, Vec<Arc<EndpointSlice>>>>,
}

impl Slices {
    /// Those of one Service.
    pub fn of(&self, namespace: &str, service: &str) -> &[Arc<EndpointSlice>] {
        self.all.get(namespace).and_then(|of| of.get(service)).map_or(&[], Vec::as_slice)
    }
}

impl FromIterator<Arc<EndpointSlice>> for Slices {
    fn from_iter<I: IntoIterator<Item = Arc<EndpointSlice>>>(slices: I) -> Self {
        let mut all: HashMap<String, HashMap<String, Vec<_>>> = HashMap::new();
        for slice in slices {
            let service = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)).cloned();
            if let (Some(namespace), Some(service)) = (slice.metadata.namespace.clone(), service) {
                all.entry(namespace).or_default().entry(service).or_default().push(slice);
            }
        }
        Self { all }
    }
}
