//! HTTP as Kubernetes uses it: paths, queries, negotiation, answers.

pub(crate) mod negotiate;
pub(crate) mod query;
pub(crate) mod request;
pub(crate) mod respond;

pub(crate) use negotiate::{Form, Format, Wanted};
pub(crate) use query::{ListOptions, Match, Query};
pub(crate) use request::RequestInfo;
pub(crate) use respond::Answer;
