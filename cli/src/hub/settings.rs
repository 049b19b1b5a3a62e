//! Settings of the hub from environment variables, the same ones that Hugging Face's own programs read.

use crate::Failure;
use crate::locate::home_folder;
use std::env;
use std::path::PathBuf;

/// Read once per command.
pub struct Settings {
    /// `HF_ENDPOINT`, without a trailing slash.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file that `hf auth login` writes.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: forbids downloads.
    pub offline: bool,
    /// The folder of downloaded models, in the hub's own layout.
    pub hub: PathBuf,
    /// Bytes per request.
    pub piece_bytes: u64,
}

/// Large enough that the cost of a request does not matter, small enough that a killed download loses little.
const PIECE_BYTES: u64 = 16 << 20;

impl Settings {
    /// # Errors
    /// If there is no folder for models.
    pub fn read() -> Result<Settings, Failure> {
        let set = |name: &str| env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home =
            folder("HF_HOME").or_else(|| Some(home_folder("XDG_CACHE_HOME", ".cache")?.join("huggingface")));
        let hub = folder("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let token = || {
            let file = folder("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let is_on = |v: String| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let token = set("HF_TOKEN").or_else(token);
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(
                "the hub's token (HF_TOKEN, or the file `token`) has characters that no token has".into()
            );
        }
        Ok(Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            offline: set("HF_HUB_OFFLINE").is_some_and(is_on),
            hub: hub.ok_or("there is no folder for models: set HOME, HF_HOME or HF_HUB_CACHE")?,
            // For tests, to split small files into many pieces.
            piece_bytes: set("DOLLOP_PIECE_BYTES")
                .and_then(|n| n.parse().ok())
                .filter(|&n| n > 0)
                .unwrap_or(PIECE_BYTES),
        })
    }
}
