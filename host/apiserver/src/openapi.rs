//! API descriptions: OpenAPI v3 per group and version, and v2 for all.

use std::sync::Arc;

use wasmk_api::Status;

use crate::{call::Call, dispatch::not_found_page, http::Answer, server::Core, table::Table};

/// Answers `/openapi/…`.
///
/// # Errors
/// Never yet.
pub(crate) fn serve(
    _core: &Arc<Core>,
    _call: &Call,
    _table: &Arc<Table>,
    _parts: &[&str],
) -> Result<Answer, Status> {
    Ok(not_found_page())
}
