//! The OpenAPI description of the server, at `/openapi.json`. It is written by hand. Gate 194 compares it with
//! the routes.

use serde_json::Value as Json;

const TEXT: &str = include_str!("openapi.json");

/// The description, with the version of this program.
pub fn description() -> Json {
    let mut json: Json = serde_json::from_str(TEXT).unwrap_or_default();
    json["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    json
}
