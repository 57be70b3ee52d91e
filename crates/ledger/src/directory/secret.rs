//! The text of API keys, and what is kept of them.
//!
//! A key reads `sk-mint-<id>-<secret><checksum>`: the id finds the record, the secret proves it, the checksum lets a
//! scanner (and us) tell a mistyped key without a look-up. A key that the operator brings along (a bootstrap key) may
//! have any form; its id is then derived from its hash.
//! Hashes are HMAC-SHA256 under a pepper that lies apart from them, so that a stolen directory alone is useless. A
//! secret of 256 random bits needs no slow hash.
//!
//! Not here: whose a key is. Invariant: nothing made here lets the secret be computed from what is kept.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{DirectoryError, KeyRefusal};

/// A key longer than this is refused before it is hashed.
pub(super) const MAX_PRESENTED_BYTES: usize = 512;
pub(super) const PREFIX: &str = "sk-mint-";
pub(super) const ID_CHARS: usize = 12;
/// 43 digits of base 62 hold 256 bits.
pub(super) const SECRET_CHARS: usize = 43;
pub(super) const CHECKSUM_CHARS: usize = 6;
pub(super) const PEPPER_BYTES: usize = 32;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key in clear text. Neither `Debug` nor an error ever shows it; it is wiped from nowhere, so let it live briefly.
pub struct Secret(pub(super) String);

impl Secret {
    /// The text to hand to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What keys are hashed with; one for an installation.
#[derive(Clone)]
pub(super) struct Pepper(pub(super) [u8; PEPPER_BYTES]);

impl Pepper {
    /// From the hexadecimal text of its file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 2 * PEPPER_BYTES {
            return None;
        }
        let mut out = [0; PEPPER_BYTES];
        for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(out))
    }

    /// HMAC-SHA256(pepper, label ‖ 0 ‖ text): labels keep the uses of one pepper apart.
    pub(super) fn keyed(&self, label: &str, text: &str) -> [u8; 32] {
        let mut block = [0_u8; 64];
        block[..PEPPER_BYTES].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        mac.update(label.as_bytes());
        mac.update(&[0]);
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// What is kept of a key.
    pub(super) fn hash(&self, key: &str) -> [u8; 32] {
        self.keyed("key", key)
    }

    /// The id under which a presented key's record lies.
    pub(super) fn id_of(&self, presented: &str) -> Result<String, KeyRefusal> {
        if presented.is_empty() || presented.len() > MAX_PRESENTED_BYTES {
            return Err(KeyRefusal::Malformed);
        }
        if let Some(id) = own_id(presented) {
            return Ok(id.to_owned());
        }
        // An imported key may look like anything, like one of ours with another checksum too.
        let mut id = hex(&self.keyed("id", presented));
        id.truncate(16);
        id.insert_str(0, "own-");
        Ok(id)
    }
}

/// A new key: its id and its whole text.
pub(super) fn new_key() -> Result<(String, Secret), DirectoryError> {
    let id = random_base62(ID_CHARS)?;
    let secret = random_base62(SECRET_CHARS)?;
    let text = format!("{PREFIX}{id}-{secret}{}", checksum(&id, &secret));
    Ok((id, Secret(text)))
}

/// The id inside a key of our making: right lengths, right checksum.
fn own_id(presented: &str) -> Option<&str> {
    let rest = presented.strip_prefix(PREFIX).filter(|rest| rest.is_ascii())?;
    if rest.len() != ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS {
        return None;
    }
    let (id, rest) = rest.split_at(ID_CHARS);
    let (secret, given) = rest.strip_prefix('-')?.split_at(SECRET_CHARS);
    (checksum(id, secret) == given).then_some(id)
}

pub(super) fn checksum(id: &str, secret: &str) -> String {
    let mut sum = Sha256::new();
    sum.update(PREFIX.as_bytes());
    sum.update(id.as_bytes());
    sum.update(b"-");
    sum.update(secret.as_bytes());
    // Slightly uneven over 62 digits, which does not matter to a checksum.
    sum.finalize()[..CHECKSUM_CHARS]
        .iter()
        .map(|b| char::from(BASE62[usize::from(*b) % 62]))
        .collect()
}

/// Digits drawn evenly: bytes of 248 and more are thrown away.
pub(super) fn random_base62(chars: usize) -> Result<String, DirectoryError> {
    let mut out = String::with_capacity(chars);
    let mut bytes = [0_u8; 64];
    while out.len() < chars {
        getrandom::fill(&mut bytes).map_err(|e| DirectoryError::Random(e.to_string()))?;
        for byte in bytes.iter().filter(|b| **b < 248).take(chars - out.len()) {
            out.push(char::from(BASE62[usize::from(*byte) % 62]));
        }
    }
    Ok(out)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|d| char::from(b"0123456789abcdef"[usize::from(d)]))
        .collect()
}
