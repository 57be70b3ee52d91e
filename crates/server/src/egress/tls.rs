//! TLS to others: whose certificates are trusted.
//!
//! Not here: which host is meant. Invariant: nothing turns the check off.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio_rustls::TlsConnector;

/// Trusts what this machine does.
pub(super) fn connector() -> Result<TlsConnector, String> {
    let config = ClientConfig::with_platform_verifier()
        .map_err(|error| format!("no TLS on this machine: {error}"))?;
    Ok(TlsConnector::from(Arc::new(config)))
}
