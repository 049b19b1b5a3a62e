//! HTTP requests: redirects, ranges, retries, and readable errors.
//!
//! The token is sent only to the hub. Redirects to other hosts are followed here, not by the HTTP library, to
//! ensure that.

use super::settings::Settings;
use crate::{Failure, note};
use dollop::CancelToken;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{RootCerts, TlsConfig};

const REDIRECTS: usize = 10;
/// Tries without progress before a download fails.
const TRIES: u32 = 6;
/// Wait before the second try. It doubles with each further try.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest wait that we accept from a server.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Without a byte for this long, a connection counts as dropped.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(20);

/// Why a request failed.
#[derive(Debug)]
pub enum Fault {
    /// A retry may succeed, after the time that the server asks for.
    Again(String, Option<Duration>),
    /// A retry would fail, too.
    Stop(String),
    /// The server ignored the range and sent the whole file.
    NoRanges,
}

impl Fault {
    fn stop(why: impl Into<String>) -> Fault {
        Fault::Stop(why.into())
    }
}

/// The beginning of a response.
pub struct Reply {
    /// The body, limited to the requested number of bytes.
    pub body: Box<dyn Read + Send>,
    /// Length of the whole file, if known.
    pub total: Option<u64>,
    /// The ETag, or else the modification time.
    pub etag: Option<String>,
    /// The final URL, after redirects.
    pub url: String,
    /// URL of the next page of a listing.
    next: Option<String>,
}

/// Makes requests; may be used from any number of threads.
pub struct Client {
    agent: ureq::Agent,
    pub settings: Settings,
    pub cancel: CancelToken,
    received: Arc<AtomicU64>,
}

impl Client {
    pub fn new(settings: Settings, cancel: CancelToken) -> Client {
        // Only the first call has an effect.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Use the system's certificates: companies add those of their proxies there.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("dollop/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(2 * SILENCE))
            .timeout_per_read(Some(SILENCE));
        let agent = ureq::Agent::new_with_config(config.build());
        Client { agent, settings, cancel, received: Arc::default() }
    }

    /// Bytes received in all responses.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Downloads text, with the URL of a listing's next page.
    ///
    /// # Errors
    /// What the user can do about it.
    pub fn text(&self, url: &str, limit: u64) -> Result<(String, Option<String>), Failure> {
        self.patiently(&mut |_| {
            let mut reply = self.open(url, None)?;
            let mut text = Vec::new();
            let read = (&mut reply.body).take(limit + 1).read_to_end(&mut text);
            read.map_err(|e| Fault::Again(format!("{}: {e}", host(url)), None))?;
            if text.len() as u64 > limit {
                return Err(Fault::stop(format!("{}: the answer is longer than {limit} bytes", host(url))));
            }
            let text = String::from_utf8(text)
                .map_err(|_| Fault::stop(format!("{}: the answer is no text", host(url))))?;
            Ok((text, reply.next.take()))
        })
    }

    /// Runs `work` until it succeeds, fails for good, or fails [`TRIES`] times without progress. `work`
    /// increases its argument to report progress.
    pub fn patiently<T>(&self, work: &mut dyn FnMut(&mut u64) -> Result<T, Fault>) -> Result<T, Failure> {
        let (mut tries, mut progress) = (0, 0);
        loop {
            let before = progress;
            let result = work(&mut progress);
            if self.cancel.is_cancelled() {
                return Err("stopped; the same command goes on where it was".into());
            }
            let (why, after) = match result {
                Ok(value) => return Ok(value),
                Err(Fault::Again(why, after)) => (why, after),
                Err(Fault::Stop(why)) => return Err(why.into()),
                Err(Fault::NoRanges) => return Err("the server does not send parts of files".into()),
            };
            tries = if progress > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(format!("{why} ({tries} tries); check the network and run the same command again: it goes on where it was").into());
            }
            if let Some(after) = after {
                if after > LONGEST_WAIT {
                    return Err(format!(
                        "{why}: it asks to wait {} s; try again after that",
                        after.as_secs()
                    )
                    .into());
                }
                note!("{why}: waiting {} s", after.as_secs());
            }
            self.wait(after.unwrap_or(FIRST_WAIT * 2u32.pow(tries - 1)));
        }
    }

    fn wait(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(20).min(time));
        }
    }

    /// Requests a file, or a range of it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn open(&self, url: &str, range: Option<Range<u64>>) -> Result<Reply, Fault> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let answer = self.ask(&url, range.as_ref())?;
            let (status, headers) = (answer.status().as_u16(), answer.headers());
            let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            match status {
                301 | 302 | 303 | 307 | 308 => {
                    let to = text("location")
                        .ok_or_else(|| Fault::stop(format!("{}: a redirect to nowhere", host(&url))))?;
                    url = joined(&url, &to)?;
                    continue;
                }
                200 | 206 => {}
                _ => return Err(self.refusal(&url, status, headers)),
            }
            let length = text("content-length").and_then(|n| n.parse::<u64>().ok());
            let etag = text("etag").or_else(|| text("last-modified"));
            let next = text("link").and_then(|link| next_page(&link));
            let total = match (&range, status) {
                (Some(range), 206) => Some(part_of(range, text("content-range").as_deref(), &url)?),
                (Some(range), _) if length.is_none_or(|n| range.start > 0 || n != range.end) => {
                    return Err(Fault::NoRanges);
                }
                _ => length,
            };
            let most = range.as_ref().map_or(u64::MAX, |r| r.end - r.start);
            let body = answer.into_body().into_with_config().limit(u64::MAX).reader().take(most);
            let body = Box::new(Counted { body, received: self.received.clone() });
            return Ok(Reply { body, total, etag, url, next });
        }
        Err(Fault::stop(format!("{}: more than {REDIRECTS} redirects", host(&url))))
    }

    fn ask(&self, url: &str, range: Option<&Range<u64>>) -> Result<ureq::http::Response<ureq::Body>, Fault> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(token) =
            self.settings.token.as_ref().filter(|_| origin(url) == origin(&self.settings.endpoint))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Fault::stop(format!("{url}: this is no URL: {e}"))
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                Fault::stop(format!("{}: no safe connection: {e}", host(url)))
            }
            ureq::Error::InvalidProxyUrl => {
                Fault::stop("the proxy in the environment (HTTPS_PROXY, ALL_PROXY) is no URL")
            }
            e => Fault::Again(format!("{}: {e}", host(url)), None),
        })
    }

    fn refusal(&self, url: &str, status: u16, headers: &HeaderMap) -> Fault {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (code, said) = (text("x-error-code"), text("x-error-message"));
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let host = host(url);
        let is_hub = origin(url) == origin(&self.settings.endpoint);
        let token = match &self.settings.token {
            Some(_) => "the token (HF_TOKEN, or that of `hf auth login`) does not allow it",
            None => "set HF_TOKEN to a token, or log in with `hf auth login`",
        };
        match status {
            401 | 403 if code == "GatedRepo" => Fault::stop(format!(
                "{host}: the model is gated ({status}): accept its terms on its page at {}, then {token}{said}",
                self.settings.endpoint
            )),
            401 | 403 if is_hub => Fault::stop(format!(
                "{host}: access is refused ({status}): there is no such repository, or it is private or gated; check the name; {token}{said}"
            )),
            401 | 403 => Fault::stop(format!("{host}: access is refused ({status}){said}")),
            404 => Fault::stop(match code {
                "RevisionNotFound" => format!("{host}: the repository has no such revision (404){said}"),
                "EntryNotFound" => format!("{host}: the repository has no such file (404){said}"),
                _ => format!("{host}: there is no such repository or file (404); check the name{said}"),
            }),
            408 | 425 | 429 | 500..=599 => {
                let after = text("retry-after").parse().ok().map(Duration::from_secs);
                let what = if status == 429 { "too many requests" } else { "the server has a problem" };
                Fault::Again(format!("{host}: {what} ({status}){said}"), after)
            }
            _ => Fault::stop(format!("{host}: status {status}{said}")),
        }
    }
}

/// Counts the bytes read.
struct Counted<R> {
    body: R,
    received: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.body.read(to)?;
        self.received.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The length of the whole file, if the response is the requested range.
fn part_of(range: &Range<u64>, said: Option<&str>, url: &str) -> Result<u64, Fault> {
    let parsed = said.and_then(|s| {
        let (part, total) = s.strip_prefix("bytes ")?.split_once('/')?;
        let (from, to) = part.split_once('-')?;
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    });
    match parsed {
        Some((from, to, total)) if from == range.start && (from..range.end).contains(&to) => Ok(total),
        _ => Err(Fault::Again(
            format!(
                "{}: an answer of other bytes ({}) than {}-{}",
                host(url),
                said.unwrap_or("none"),
                range.start,
                range.end - 1
            ),
            None,
        )),
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The host of a URL, for messages. Whole URLs of storage hosts can be very long.
pub fn host(url: &str) -> String {
    url.parse::<Uri>()
        .ok()
        .and_then(|u| Some(u.authority()?.host().to_owned()))
        .unwrap_or_else(|| url.to_owned())
}

/// The target of a redirect.
fn joined(from: &str, to: &str) -> Result<String, Fault> {
    let bad = || Fault::stop(format!("{}: a redirect to `{to}`, which is refused", host(from)));
    let uri: Uri = from.parse().map_err(|_| bad())?;
    let (scheme, authority) = (uri.scheme_str().ok_or_else(bad)?, uri.authority().ok_or_else(bad)?);
    let url = match to {
        _ if to.starts_with("https://") || to.starts_with("http://") => to.to_owned(),
        _ if to.starts_with("//") => format!("{scheme}:{to}"),
        _ if to.starts_with('/') => {
            format!("{scheme}://{}{to}", authority.as_str().rsplit('@').next().unwrap_or_default())
        }
        _ => return Err(bad()),
    };
    // A secure request must not be redirected to an insecure URL.
    if scheme == "https" && !url.starts_with("https://") { Err(bad()) } else { Ok(url) }
}

/// The URL with `rel="next"` in a `Link` header.
fn next_page(link: &str) -> Option<String> {
    let page = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(page.split_once('<')?.1.split_once('>')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_safe() {
        let joined = |from: &str, to: &str| joined(from, to).ok();
        assert_eq!(joined("https://a.test/x", "/y?z").as_deref(), Some("https://a.test/y?z"));
        assert_eq!(joined("https://u@a.test:81/x", "//b.test/y").as_deref(), Some("https://b.test/y"));
        assert_eq!(joined("http://a.test/x", "https://b.test/y").as_deref(), Some("https://b.test/y"));
        for to in ["http://a.test/x", "ftp://a.test", "y", "file:///etc/passwd"] {
            assert_eq!(joined("https://a.test/x", to), None, "{to}");
        }
    }

    #[test]
    fn the_token_belongs_to_one_origin() {
        assert_eq!(origin("https://a.test/x"), origin("HTTPS://A.test:443"));
        for other in ["http://a.test", "https://a.test:444", "https://b.test", "https://a.test.b.test"] {
            assert_ne!(origin("https://a.test"), origin(other), "{other}");
        }
    }

    #[test]
    fn answers_are_of_the_part_that_was_asked_for() {
        let part = |said| part_of(&(10..20), Some(said), "http://a.test/").ok();
        assert_eq!(part("bytes 10-19/100"), Some(100));
        assert_eq!(part("bytes 10-14/15"), Some(15));
        for wrong in ["bytes 0-9/100", "bytes 10-20/100", "bytes 10-19/*", "10-19/100", "bytes 10-9/100", ""]
        {
            assert_eq!(part(wrong), None, "{wrong}");
        }
        assert_eq!(
            next_page("<http://a/1>; rel=\"prev\", <http://a/2>; rel=\"next\"").as_deref(),
            Some("http://a/2")
        );
    }
}
