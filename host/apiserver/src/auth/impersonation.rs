//! Acting as somebody else: whom the `Impersonate-` headers of a request name.

use http::HeaderMap;
use wasmk_api::Status;

use super::user::User;

/// Whom a request wants to act as, from its `Impersonate-` headers; `None` when it has none.
///
/// # Errors
/// When groups or extras are impersonated without a user.
pub(crate) fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut user = User { name: text("impersonate-user"), uid: text("impersonate-uid"), ..User::default() };
    user.groups =
        headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok().map(Into::into)).collect();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            let key = crate::http::request::decode(key);
            user.extra.entry(key).or_default().push(value.into());
        }
    }
    if user.name.is_empty() {
        let bare = user.groups.is_empty() && user.extra.is_empty() && user.uid.is_empty();
        return if bare { Ok(None) } else { Err(Status::bad_request(without_user(&user))) };
    }
    Ok(Some(user))
}

/// In the words of Kubernetes, which prints the user as Go does.
fn without_user(user: &User) -> String {
    let list = |items: &[String]| match items {
        [] => "[]string(nil)".to_owned(),
        items => {
            format!("[]string{{{}}}", items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(", "))
        }
    };
    let extra: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect();
    let extra = if extra.is_empty() { "(nil)".into() } else { format!("{{{}}}", extra.join(", ")) };
    format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{}, Extra:map[string][]string{extra}}} without impersonating a user name",
        user.uid,
        list(&user.groups)
    )
}
