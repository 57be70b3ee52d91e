//! TLS to others: whose certificates are trusted, and in words why one is not.
//!
//! Not here: which host is meant. Invariant: nothing turns the check off.

use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio_rustls::TlsConnector;

/// Certificates of authorities that are trusted beside those that this machine trusts.
#[derive(Clone, Default)]
pub struct CaCertificates(Vec<CertificateDer<'static>>);

impl CaCertificates {
    /// One or several, as files have them (PEM).
    ///
    /// # Errors
    /// There is none, or one that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let all = all.map_err(|error| format!("a certificate cannot be read: {error}"))?;
        if all.is_empty() {
            return Err("it holds no certificate (`-----BEGIN CERTIFICATE-----`)".to_owned());
        }
        // What is none shows here, not at the first request.
        let mut store = RootCertStore::empty();
        for certificate in &all {
            let added = store.add(certificate.clone());
            added.map_err(|error| format!("a certificate cannot be read: {error}"))?;
        }
        Ok(Self(all))
    }
}

impl std::fmt::Debug for CaCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CaCertificates({})", self.0.len())
    }
}

/// Trusts what this machine does, and `more`.
pub(super) fn connector(more: &CaCertificates) -> Result<TlsConnector, String> {
    let failed = |error: rustls::Error| format!("no TLS on this machine: {error}");
    let builder = ClientConfig::builder();
    let provider = Arc::clone(builder.crypto_provider());
    let verifier =
        Verifier::new_with_extra_roots(more.0.iter().cloned(), provider).map_err(failed)?;
    // Not another check: the platform's, with further roots.
    let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

/// What is wrong with the certificate of a host, where that is why a handshake failed.
pub(super) fn distrust(error: &io::Error, host: &str) -> Option<String> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(wrong) = inner else { return None };
    let what = match wrong {
        UnknownIssuer => {
            "is of no authority that this machine trusts; `ca_file` can name the certificate of one more"
        }
        Expired | ExpiredContext { .. } => "has expired",
        NotValidYet | NotValidYetContext { .. } => {
            "is not valid yet: is this machine's clock right?"
        }
        NotValidForName | NotValidForNameContext { .. } => "is for another name",
        _ => "is refused",
    };
    Some(format!("the certificate of `{host}` {what} ({wrong})"))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn why_a_certificate_is_not_trusted_is_told_in_words() {
        let told = |error: rustls::Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            distrust(&error, "far.example")
        };
        let check = |wrong: CertificateError, says: &str| {
            let told = told(rustls::Error::InvalidCertificate(wrong)).unwrap();
            assert!(told.starts_with("the certificate of `far.example` "), "{told}");
            assert!(told.contains(says), "{told}");
        };
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        check(CertificateError::UnknownIssuer, "`ca_file` can name");
        check(CertificateError::Expired, "has expired");
        let expired = CertificateError::ExpiredContext { time: at(9), not_after: at(1) };
        check(expired, "has expired (certificate expired");
        let early = CertificateError::NotValidYetContext { time: at(1), not_before: at(9) };
        check(early, "is this machine's clock right?");
        let expected = ServerName::try_from("far.example").unwrap();
        let presented = vec!["near.example".to_owned()];
        let other = CertificateError::NotValidForNameContext { expected, presented };
        check(other, "is for another name");
        check(CertificateError::Revoked, "is refused");
        assert_eq!(told(rustls::Error::DecryptError), None);
        assert_eq!(distrust(&io::Error::from(io::ErrorKind::TimedOut), "far.example"), None);
    }
}
