//! Signatures of the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body`, in base 64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// As receivers' libraries take it.
pub(super) fn shown(key: &[u8; 32]) -> String {
    format!("whsec_{}", STANDARD.encode(key))
}

/// The header `webhook-signature`.
pub(super) fn signature(key: &[u8; 32], id: &str, timestamp_s: u64, body: &[u8]) -> String {
    let mut block = [0_u8; 64];
    block[..32].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac` and `base64`.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(shown(&key), "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert_eq!(
            signature(&key, "msg_1", 1_700_000_000, br#"{"type":"x"}"#),
            "v1,Lb2lGY1NwLU374cIn8s002qG1XvdHK6XToSjcNFDuCg="
        );
    }
}
