//! Changing objects: create, update, patch, delete.
//!
//! Every write takes the same way: decode, defaults, mutating admission, the kind's preparation, system
//! metadata, validation, field management, validating admission, one transaction of the store.

mod commit;
mod create;
mod delete;
mod meta;
mod patch;
mod update;

use std::sync::Arc;

use bytes::Bytes;
use wasmk_api::{Object, Status, Timestamp};

use crate::{
    call::Call,
    http::{negotiate, negotiate::BodyType},
    machine,
    server::Core,
    table::Resource,
};

pub(crate) use commit::{Claim, Written, put, remove};
pub(crate) use create::{create, create_object};
pub(crate) use delete::{DeleteOptions, delete, delete_collection, delete_object};
pub(crate) use meta::{generated as generated_name, order as order_metadata};
pub(crate) use patch::{Sent, patch, patched, patched_as, read_patch};
pub(crate) use update::{Done, Mode, update, update_object};

/// What the steps of a write share.
pub(crate) struct Work<'a> {
    /// The server.
    pub(crate) core: &'a Arc<Core>,
    /// The request.
    pub(crate) call: &'a Call,
    /// What is written.
    pub(crate) resource: &'a Arc<Resource>,
    /// Whether nothing is to be stored.
    pub(crate) dry_run: bool,
    /// Whether the object is the server's own and needs no admission and validation.
    pub(crate) trusted: bool,
    /// Whether who owns which fields is settled already, as it is after an apply patch.
    pub(crate) owned: bool,
    /// Whether the change is a patch, which pins no identity.
    pub(crate) patch: bool,
    /// Who manages the fields that are written.
    pub(crate) manager: String,
    /// The present.
    pub(crate) now: Timestamp,
}

impl<'a> Work<'a> {
    /// For a request.
    ///
    /// # Errors
    /// When an option of the request is wrong.
    pub(crate) fn new(
        core: &'a Arc<Core>,
        call: &'a Call,
        resource: &'a Arc<Resource>,
    ) -> Result<Self, Status> {
        let manager = call.field_manager();
        machine::check_manager(call, &manager)?;
        let (dry_run, now) = (call.dry_run()?, (core.config.clock)());
        Ok(Self { core, call, resource, dry_run, trusted: false, owned: false, patch: false, manager, now })
    }

    /// The namespace the request is about; empty for cluster-scoped resources.
    pub(crate) fn namespace(&self) -> &str {
        crate::read::namespace_of(self.call, self.resource)
    }

    /// The refusal of an object that does not exist.
    pub(crate) fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.resource.group_resource(), name)
    }

    /// Reads a body as an object of the resource's kind, with its defaults.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(&self, body: &Bytes) -> Result<Object, Status> {
        let body_type = negotiate::body_type(&self.call.headers)?;
        self.decode_as(body, body_type, &self.resource.gvk)
    }

    /// Reads a body as an object of some kind, with its defaults.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode_as(
        &self,
        body: &Bytes,
        body_type: BodyType,
        gvk: &wasmk_api::Gvk,
    ) -> Result<Object, Status> {
        machine::decode(self.call, self.resource, gvk, body, body_type)
    }

    /// Checks that an object says nothing else than the path about where it is, and says it itself.
    ///
    /// # Errors
    /// When it does.
    pub(crate) fn place(&self, object: &mut Object, name: &str) -> Result<(), Status> {
        let namespace = self.namespace();
        if !object.namespace().is_empty() && object.namespace() != namespace {
            let message = if namespace.is_empty() {
                "namespace may not be set on a cluster-scoped object"
            } else {
                "the namespace of the provided object does not match the namespace sent on the request"
            };
            if !namespace.is_empty() {
                return Err(Status::bad_request(message));
            }
            object.set_meta("namespace", serde_json::Value::Null);
        }
        if !namespace.is_empty() && object.namespace().is_empty() {
            object.set_meta("namespace", namespace);
        }
        if name.is_empty() {
            return Ok(());
        }
        if object.name().is_empty() {
            return Err(Status::bad_request("name must be provided"));
        }
        if object.name() != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                object.name()
            )));
        }
        Ok(())
    }
}
