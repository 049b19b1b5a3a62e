//!
//! The chat page at `/`: four files embedded in the program, built from `server/web` by its `build.sh`.
//!
//! The page shows text that a model wrote, and sanitizes it. If something gets through, the
//! Content-Security-Policy still blocks foreign scripts and requests to other origins.

use crate::service::Service;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use axum::routing::get;
use std::sync::Arc;

struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: [File; 4] = [
    File { path: "/", kind: "text/html; charset=utf-8", text: include_str!("../web/dist/index.html") },
    File {
        path: "/page.js",
        kind: "text/javascript; charset=utf-8",
        text: include_str!("../web/dist/page.js"),
    },
    File { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("../web/dist/page.css") },
    File {
        path: "/page.licences.txt",
        kind: "text/plain; charset=utf-8",
        text: include_str!("../web/dist/page.licences.txt"),
    },
];

/// `img-src data:` is for the page's icon, which is inlined in the HTML. Pictures in answers are not shown at
/// all.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
    trusted-types dompurify";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // The browser must revalidate: another version of the program has a different page.
    (header::CACHE_CONTROL, "no-cache"),
];

/// The page's routes.
pub fn router() -> Router<Arc<Service>> {
    let route =
        |router: Router<_>, file: &'static File| router.route(file.path, get(async || response(file)));
    FILES.iter().fold(Router::new(), route)
}

fn response(file: &File) -> Response<Body> {
    let mut response = Response::new(Body::from(file.text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.kind));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
