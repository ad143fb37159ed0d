//! The dashboard: files of the program, and nothing from elsewhere. They hold nothing that is secret, so
//! that everybody may have them; what they show they ask for with the admin token.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// Nothing is loaded from, sent to, or shown within anything but this listener.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal: $kind:ident $file:literal,)*) => {
        const FILES: &[(&str, &str, &str)] =
            &[$(($path, $kind, include_str!(concat!("dashboard/", $file))),)*];
    };
}

files! {
    "/": HTML "index.html",
    "/dashboard/style.css": CSS "style.css",
    "/dashboard/icon.svg": SVG "icon.svg",
    "/dashboard/app.js": SCRIPT "app.js",
    "/dashboard/api.js": SCRIPT "api.js",
    "/dashboard/chart.js": SCRIPT "chart.js",
    "/dashboard/events.js": SCRIPT "events.js",
    "/dashboard/fleet.js": SCRIPT "fleet.js",
    "/dashboard/format.js": SCRIPT "format.js",
    "/dashboard/image.js": SCRIPT "image.js",
    "/dashboard/map.js": SCRIPT "map.js",
    "/dashboard/site.js": SCRIPT "site.js",
}

/// The file at `path`, if there is one.
pub(super) fn file(path: &str, request: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    let (_, kind, content) = FILES.iter().find(|(name, _, _)| *name == path)?;
    // Another version has other files.
    let etag = HeaderValue::from_static(concat!("\"", env!("CARGO_PKG_VERSION"), "\""));
    let is_known = !cfg!(debug_assertions) && request.get(header::IF_NONE_MATCH) == Some(&etag);
    let mut response = Response::new(Full::from(if is_known { "" } else { *content }));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::ETAG, etag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}
