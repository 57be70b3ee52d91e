//! The hub against servers that speak its protocols: a local one for Hugging Face, the real pip for wheels.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod hugging_face;
mod server;
mod sharing;
mod wheels;

use std::path::Path;
use std::sync::Mutex;

use mintage_hub::{Catalogue, Hub, HubConfig, Progress, PullEvent};
use sha2::Digest as _;

/// Bytes that compress badly and differ everywhere, so that a piece in the wrong place is noticed.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect()
}

pub(crate) fn sha256(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A catalogue with one model, `m`, of this content and these sources.
pub(crate) fn catalogue(content: &[u8], sources: &str) -> Catalogue {
    let text = format!(
        r#"
        [[model]]
        name = "m"
        title = "M"
        family = "qwen2"
        parameters = "1"
        quant = "F32"
        licence = "Apache-2.0"
        file = "m.gguf"
        bytes = {}
        sha256 = "{}"
        {sources}"#,
        content.len(),
        sha256(content)
    );
    Catalogue::parse(&text).unwrap()
}

pub(crate) fn config(data_dir: &Path, endpoint: &str) -> HubConfig {
    HubConfig {
        data_dir: data_dir.to_owned(),
        endpoint: endpoint.to_owned(),
        token: Some("secret".to_owned()),
        pip_args: Vec::new(),
        folder: None,
    }
}

/// Whether the store holds exactly this as model `m`.
#[track_caller]
pub(crate) fn assert_stored(hub: &Hub, content: &[u8]) {
    let model = hub.find(&"m".parse().unwrap(), &Events::default()).unwrap().unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    let partial = hub.store().root().join("partial");
    let left = std::fs::read_dir(partial).unwrap().count();
    assert_eq!(left, 0, "something is left in `partial`");
}

/// Remembers events as text; leaves out the frequent ones.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<String>>);

impl Events {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Progress for Events {
    fn event(&self, event: PullEvent<'_>) {
        if !matches!(event, PullEvent::At { .. }) {
            self.0.lock().unwrap().push(format!("{event:?}"));
        }
    }
}
