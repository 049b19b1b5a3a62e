//! Access control: checks of the `Host` header, the `Origin` header and the API key.

use crate::options::ServerOptions;
use crate::refusal::Refusal;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// Paths that need no key. They reveal nothing about requests and answers.
const OPEN: [&str; 6] = ["/", "/page.js", "/page.css", "/page.licences.txt", "/health", "/api/version"];

/// Checks whether a request may pass.
///
/// # Errors
/// 403 for a host name that is not allowed or a page of another site. 401 for a missing or wrong key.
pub fn check(options: &ServerOptions, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    check_host(options, uri, headers)?;
    check_origin(options, headers)?;
    match &options.key {
        Some(key) if !OPEN.contains(&uri.path()) => check_key(key, headers),
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Protects against DNS rebinding: a site can point its own name at this machine, but the browser then sends
/// that name in `Host`.
fn check_host(options: &ServerOptions, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let sent = uri.authority().map(|a| a.as_str()).or_else(|| text(headers, header::HOST));
    let name = sent.map(host_name).unwrap_or_default();
    let own = |own: &String| own.eq_ignore_ascii_case(name);
    // An IP address cannot be rebound: DNS does not resolve it.
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if address || name.eq_ignore_ascii_case("localhost") || options.hosts.iter().any(own) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let message = format!("the host name `{shown}` is not allowed; --host NAME allows it");
    Err(Refusal { code: Some("host_not_allowed"), ..Refusal::new(StatusCode::FORBIDDEN, message) })
}

/// Removes the port from `name:port`.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Browsers send the origin of the page that makes a request. Pages of this server are allowed, other origins
/// only if `--cors` names them.
fn check_origin(options: &ServerOptions, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let own = || {
        let page = origin.to_str().ok()?;
        let page = page.strip_prefix("http://").or_else(|| page.strip_prefix("https://"))?;
        Some(page.eq_ignore_ascii_case(text(headers, header::HOST)?))
    };
    if own() == Some(true) || allowed(options, origin).is_some() {
        return Ok(());
    }
    let message = "pages of this origin are not allowed; --cors ORIGIN allows them";
    Err(Refusal { code: Some("origin_not_allowed"), ..Refusal::new(StatusCode::FORBIDDEN, message) })
}

/// The value of `Access-Control-Allow-Origin` for another site's page, or `None` if that origin is not
/// allowed.
fn allowed(options: &ServerOptions, origin: &HeaderValue) -> Option<HeaderValue> {
    let origin_text = origin.to_str().ok()?;
    let named = options.cors.iter().any(|cors| cors == "*" || cors.trim_end_matches('/') == origin_text);
    named.then(|| origin.clone())
}

/// Adds the CORS headers that let an allowed origin read the response.
pub fn cors(options: &ServerOptions, request: &HeaderMap, response: &mut HeaderMap) {
    if options.cors.is_empty() {
        return;
    }
    response.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = request.get(header::ORIGIN).and_then(|origin| allowed(options, origin)) else {
        return;
    };
    response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let methods = HeaderValue::from_static("GET, POST, OPTIONS");
    response.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    // Browser clients send their own extra headers, so any are allowed. The key is checked all the same.
    let wanted = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let headers = wanted.unwrap_or(HeaderValue::from_static("authorization, content-type, x-api-key"));
    response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
    response.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

/// Whether this is a CORS preflight. Browsers send it without the key.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Checks the host and origin of a preflight.
///
/// # Errors
/// 403 if either check fails.
pub fn check_preflight(options: &ServerOptions, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    check_host(options, uri, headers)?;
    check_origin(options, headers)
}

/// Checks the key, in the header of OpenAI's clients (`Authorization: Bearer`) or of Anthropic's
/// (`x-api-key`).
fn check_key(key: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let sent = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    // In constant time, so that timing does not reveal how much of a guessed key is right.
    if sent.is_some_and(|sent| bool::from(sent.ct_eq(key.as_bytes()))) {
        return Ok(());
    }
    let message = match sent {
        Some(_) => "the API key is wrong",
        None => "the API key is missing: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
    };
    Err(Refusal { code: Some("invalid_api_key"), ..Refusal::new(StatusCode::UNAUTHORIZED, message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(options: &ServerOptions, path: &str, pairs: &[(&'static str, &str)]) -> u16 {
        check(options, &path.parse().unwrap(), &headers(pairs)).map_or_else(|r| r.status.as_u16(), |()| 200)
    }

    #[test]
    fn names_that_may_lead_elsewhere_are_refused() {
        let mut options = ServerOptions::default();
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "192.168.0.7"] {
            assert_eq!(status(&options, "/v1/models", &[("host", good)]), 200, "{good}");
        }
        for bad in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", ""]
        {
            assert_eq!(status(&options, "/v1/models", &[("host", bad)]), 403, "{bad}");
        }
        options.hosts.push("box.example".into());
        assert_eq!(status(&options, "/v1/models", &[("host", "box.example:80")]), 200);
    }

    #[test]
    fn pages_of_other_sites_are_refused_unless_named() {
        let mut options = ServerOptions::default();
        let own = [("host", "localhost:8080"), ("origin", "http://localhost:8080")];
        let other = [("host", "localhost:8080"), ("origin", "https://app.example")];
        let sandbox = [("host", "localhost:8080"), ("origin", "null")];
        assert_eq!([own, other, sandbox].map(|h| status(&options, "/v1/models", &h)), [200, 403, 403]);
        options.cors.push("https://app.example".into());
        assert_eq!([own, other, sandbox].map(|h| status(&options, "/v1/models", &h)), [200, 200, 403]);
        let mut response = HeaderMap::new();
        cors(&options, &headers(&other), &mut response);
        assert_eq!(response["access-control-allow-origin"], "https://app.example");
        let mut response = HeaderMap::new();
        cors(&options, &headers(&sandbox), &mut response);
        assert!(!response.contains_key("access-control-allow-origin"));
    }

    #[test]
    fn the_key_opens_all_but_the_health() {
        let options = ServerOptions { key: Some("secret".into()), ..ServerOptions::default() };
        let with = |pair| status(&options, "/v1/models", &[("host", "localhost"), pair]);
        assert_eq!(with(("authorization", "Bearer secret")), 200);
        assert_eq!(with(("x-api-key", "secret")), 200);
        for bad in ["Bearer secre", "Bearer secrets", "Basic secret", "Bearer", "secret"] {
            assert_eq!(with(("authorization", bad)), 401, "{bad}");
        }
        assert_eq!(status(&options, "/v1/models", &[("host", "localhost")]), 401);
        assert_eq!(status(&options, "/health", &[("host", "localhost")]), 200);
    }
}
