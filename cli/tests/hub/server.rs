//! A stand-in for the hub on loopback, with its storage host on another port: what Hugging Face's servers do, and what goes wrong
//! on the way, by rules that a test sets.

use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What the server does in place of answering.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after this many bytes of the body.
    Drop(usize),
    /// It ends with the whole file in the announced length, of another content.
    Garble,
    /// The length of the whole file is said to be this.
    Total(u64),
    /// Another part than the one that was asked for.
    OtherPart,
    /// The whole file in answer to a request for a part.
    Whole,
    /// A pause before the answer.
    Late(Duration),
    /// A pause behind each 4 KiB.
    Slow(Duration),
    /// The file of a URL becomes this one.
    Change(Vec<u8>),
    /// The answer's body, in place of any other.
    Say(String),
}

/// A rule: it applies to requests whose path contains the text, this many times, from the `skip`-th on.
struct Rule {
    path: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub token: Option<String>,
    /// Whether it came to the storage host.
    pub storage: bool,
}

#[derive(Default)]
struct State {
    /// By path in the repository `org/name`.
    files: BTreeMap<String, Vec<u8>>,
    /// Files of the repository that go on with zeros up to a length.
    holes: BTreeMap<String, u64>,
    /// Files outside a repository, by name.
    plain: BTreeMap<String, Vec<u8>>,
    commit: char,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    bytes_sent: u64,
    storage: String,
}

/// The two servers. They end with the process.
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    pub endpoint: String,
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// Names of large files, as the hub stores them.
fn is_large(path: &str) -> bool {
    path.ends_with(".gguf") || path.ends_with(".safetensors") || path == "tokenizer.json"
}

impl Hub {
    pub fn start() -> Hub {
        let state = Arc::new(Mutex::new(State { commit: 'a', ..State::default() }));
        let mut hosts = Vec::new();
        for storage in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            hosts.push(format!("http://{}", listener.local_addr().unwrap()));
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || serve(stream, &state, storage));
                }
            });
        }
        let storage = hosts.pop().unwrap();
        lock(&state).storage = storage;
        Hub { state, endpoint: hosts.pop().unwrap() }
    }

    /// With these files in its repository.
    pub fn with(files: &[(&str, &[u8])]) -> Hub {
        let hub = Hub::start();
        files.iter().for_each(|(path, bytes)| hub.put(path, bytes));
        hub
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        lock(&self.state).files.insert(path.to_owned(), bytes.to_vec());
    }

    /// A file that goes on with zeros up to `len`.
    pub fn put_with_holes(&self, path: &str, bytes: &[u8], len: u64) {
        self.put(path, bytes);
        lock(&self.state).holes.insert(path.to_owned(), len);
    }

    /// All files of a folder.
    pub fn put_folder(&self, folder: &std::path::Path) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            self.put(entry.file_name().to_str().unwrap(), &std::fs::read(entry.path()).unwrap());
        }
    }

    /// A file outside a repository; returns its URL.
    pub fn put_plain(&self, name: &str, bytes: &[u8]) -> String {
        lock(&self.state).plain.insert(name.to_owned(), bytes.to_vec());
        format!("{}/files/{}", self.endpoint.replace("127.0.0.1", "localhost"), name)
    }

    /// The repository has a new commit.
    pub fn commit(&self, letter: char) {
        lock(&self.state).commit = letter;
    }

    /// From now on, for requests with `path` in theirs.
    pub fn rule(&self, path: &str, times: usize, fault: Fault) {
        self.rule_after(path, 0, times, fault);
    }

    /// The same, behind `skip` requests that are answered well.
    pub fn rule_after(&self, path: &str, skip: usize, times: usize, fault: Fault) {
        lock(&self.state).rules.push(Rule { path: path.to_owned(), skip, times, fault });
    }

    /// Forgets the rules, and returns what was asked so far.
    pub fn reset(&self) -> Vec<Seen> {
        let mut state = lock(&self.state);
        state.rules.clear();
        state.bytes_sent = 0;
        std::mem::take(&mut state.seen)
    }

    pub fn bytes_sent(&self) -> u64 {
        lock(&self.state).bytes_sent
    }

    /// Rules that no request has met as often as they say.
    pub fn left(&self) -> Vec<String> {
        let state = lock(&self.state);
        let left = state.rules.iter().filter(|r| r.times > 0 && r.times < usize::MAX / 2);
        left.map(|r| format!("{} {:?}", r.path, r.fault)).collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Request {
    path: String,
    range: Option<(u64, u64)>,
    token: Option<String>,
}

fn request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, range: None, token: None };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
                request.range = Some((from.parse().ok()?, to.parse().ok()?));
            }
            "authorization" => request.token = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    Some(request)
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Pauses, drops.
    pace: Option<Duration>,
    cut: Option<usize>,
}

fn plain(status: u16, headers: Vec<(&'static str, String)>, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers, body: body.into(), pace: None, cut: None }
}

fn serve(stream: TcpStream, state: &Mutex<State>, storage: bool) {
    let Some(request) = request(&stream) else { return };
    let (fault, answer) = {
        let mut state = lock(state);
        let fault = met(&mut state, &request.path);
        state.seen.push(Seen { path: request.path.clone(), token: request.token.clone(), storage });
        if let (Some(Fault::Change(bytes)), Some(name)) = (&fault, request.path.strip_prefix("/files/")) {
            state.plain.insert(name.to_owned(), bytes.clone());
        }
        let answer = answer(&state, &request, storage, fault.as_ref());
        (fault, answer)
    };
    if let Some(Fault::Late(time)) = fault {
        std::thread::sleep(time);
    }
    let sent = send(stream, &answer);
    lock(state).bytes_sent += sent as u64;
}

/// The fault that a rule has for this request.
fn met(state: &mut State, path: &str) -> Option<Fault> {
    for rule in state.rules.iter_mut().filter(|r| r.times > 0 && path.contains(&r.path)) {
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        rule.times -= 1;
        return Some(rule.fault.clone());
    }
    None
}

fn answer(state: &State, request: &Request, storage: bool, fault: Option<&Fault>) -> Answer {
    match fault {
        Some(Fault::Status(status, headers)) => return plain(*status, headers.clone(), "no"),
        Some(Fault::Say(text)) => return plain(200, Vec::new(), text.as_str()),
        _ => {}
    }
    let none = || plain(404, vec![("X-Error-Code", "EntryNotFound".into())], "none");
    let path = request.path.as_str();
    let commit = state.commit.to_string().repeat(40);
    if storage {
        // A path as long as that of real storage, and a signature.
        let Some(sum) = path.strip_prefix("/bucket/").and_then(|p| p.split('?').next()) else {
            return none();
        };
        let found = state.files.values().find(|bytes| sha256(bytes) == sum);
        return found
            .map_or_else(none, |bytes| file(bytes, &format!("\"storage-{}\"", bytes.len()), request, fault));
    }
    if let Some(name) = path.strip_prefix("/files/") {
        let tag = |bytes: &Vec<u8>| format!("\"{}\"", &sha256(bytes)[..8]);
        return state.plain.get(name).map_or_else(none, |bytes| file(bytes, &tag(bytes), request, fault));
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let known = ["main", "v1", &commit].iter().any(|r| path.ends_with(&format!("/{r}")));
        return match known {
            true => plain(200, Vec::new(), json!({ "sha": commit, "id": "org/name" }).to_string()),
            false => plain(404, vec![("X-Error-Code", "RevisionNotFound".into())], "none"),
        };
    }
    if let Some(rest) = path.strip_prefix(&format!("/api/models/org/name/tree/{commit}")) {
        return tree(state, rest, &request_url(path));
    }
    if let Some(file_path) = path.strip_prefix(&format!("/org/name/resolve/{commit}/")) {
        let name = percent(file_path);
        let Some(bytes) = state.files.get(&name) else { return none() };
        if let (Some(len), Some((from, to))) = (state.holes.get(&name), request.range) {
            let byte = |at: u64| bytes.get(at as usize).copied().unwrap_or(0);
            let part: Vec<u8> = (from..=to.min(len - 1)).map(byte).collect();
            return plain(206, vec![("Content-Range", format!("bytes {from}-{to}/{len}"))], part);
        }
        if !is_large(&name) {
            return file(bytes, "\"small\"", request, fault);
        }
        let to = format!("{}/bucket/{}?signature={}", state.storage, sha256(bytes), "x".repeat(400));
        return plain(302, vec![("Location", to), ("X-Linked-Size", bytes.len().to_string())], "");
    }
    plain(
        401,
        vec![("X-Error-Code", "RepoNotFound".into()), ("X-Error-Message", "Repository not found".into())],
        "no",
    )
}

fn request_url(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

/// A page of three files, and where the next is.
fn tree(state: &State, rest: &str, path: &str) -> Answer {
    let from = rest.split_once("cursor=").and_then(|(_, n)| n.parse::<usize>().ok()).unwrap_or(0);
    let nodes: Vec<_> = state
        .files
        .iter()
        .skip(from)
        .take(3)
        .map(|(path, bytes)| node(path, bytes, state.holes.get(path)))
        .collect();
    let mut headers = Vec::new();
    if from + 3 < state.files.len() {
        // The client knows this server by the address that it was given.
        headers
            .push(("Link", format!("<{{endpoint}}{path}?recursive=true&cursor={}>; rel=\"next\"", from + 3)));
    }
    plain(200, headers, json!(nodes).to_string())
}

fn node(path: &str, bytes: &[u8], len: Option<&u64>) -> serde_json::Value {
    let len = len.copied().unwrap_or(bytes.len() as u64);
    let git = hex(&ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()[..20]);
    let mut node = json!({ "type": "file", "path": path, "size": len, "oid": git });
    if is_large(path) {
        node["lfs"] = json!({ "oid": sha256(bytes), "size": len, "pointerSize": 134 });
    }
    node
}

fn percent(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).unwrap()
}

/// A file or a part of it.
fn file(bytes: &[u8], etag: &str, request: &Request, fault: Option<&Fault>) -> Answer {
    let mut headers = vec![("ETag", etag.to_owned()), ("Accept-Ranges", "bytes".into())];
    let range = request.range.filter(|_| !matches!(fault, Some(Fault::Whole)));
    let mut answer = match range {
        None => plain(200, headers, bytes),
        Some((from, to)) => {
            let (from, to) = (from as usize, (to as usize + 1).min(bytes.len()));
            if from >= to {
                return plain(416, Vec::new(), "");
            }
            let total = if let Some(Fault::Total(n)) = fault { *n } else { bytes.len() as u64 };
            let said = if let Some(Fault::OtherPart) = fault { from + 1 } else { from };
            headers.push(("Content-Range", format!("bytes {said}-{}/{total}", to - 1)));
            plain(206, headers, &bytes[from..to])
        }
    };
    match fault {
        Some(Fault::Garble) => answer.body.iter_mut().for_each(|b| *b ^= 1),
        Some(Fault::Drop(n)) => answer.cut = Some(*n),
        Some(Fault::Slow(time)) => answer.pace = Some(*time),
        _ => {}
    }
    answer
}

/// Returns how many bytes of the body went out.
fn send(mut stream: TcpStream, answer: &Answer) -> usize {
    let here = stream.local_addr().map(|a| format!("http://{a}")).unwrap_or_default();
    let mut head = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head += &format!("{name}: {}\r\n", value.replace("{endpoint}", &here));
    }
    if stream.write_all((head + "\r\n").as_bytes()).is_err() {
        return 0;
    }
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    let mut sent = 0;
    for part in body.chunks(4096) {
        if stream.write_all(part).is_err() {
            break;
        }
        sent += part.len();
        if let Some(pace) = answer.pace {
            std::thread::sleep(pace);
        }
    }
    sent
}
