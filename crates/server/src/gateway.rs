//! Tenant to cache domain and fair share: a project has a cache of its own, an organisation a share of the engine.
//!
//! Invariant: two tenants never get the same cache domain unless the operator shares the cache, and nobody outside can
//! compute one: it is keyed with a secret of the installation.

use hmac::{Hmac, KeyInit, Mac};
use mintage_model::CacheDomain;
use sha2::Sha256;

/// Derives what the engine may know of a tenant.
pub(crate) struct Gateway {
    secret: [u8; 32],
    share_prefix_cache: bool,
}

impl Gateway {
    pub(crate) fn new(secret: [u8; 32], share_prefix_cache: bool) -> Self {
        Self { secret, share_prefix_cache }
    }

    /// Whose cached prefixes a request of `project` may reuse.
    pub(crate) fn cache_domain(&self, project: &str) -> CacheDomain {
        if self.share_prefix_cache {
            return CacheDomain::default();
        }
        let mut domain = [0; 16];
        domain.copy_from_slice(&self.keyed("cache-domain", project)[..16]);
        CacheDomain(domain)
    }

    /// The organisation as the scheduler tells tenants apart.
    pub(crate) fn fair_share(&self, organisation: &str) -> u64 {
        let mut share = [0; 8];
        share.copy_from_slice(&self.keyed("fair-share", organisation)[..8]);
        u64::from_le_bytes(share)
    }

    /// HMAC-SHA256(secret, purpose ‖ 0 ‖ tenant).
    fn keyed(&self, purpose: &str, tenant: &str) -> [u8; 32] {
        let mut block = [0_u8; 64];
        block[..32].copy_from_slice(&self.secret);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(tenant.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_kept_apart() {
        let gateway = Gateway::new([7; 32], false);
        assert_eq!(gateway.cache_domain("a"), gateway.cache_domain("a"));
        assert_ne!(gateway.cache_domain("a"), gateway.cache_domain("b"));
        assert_ne!(gateway.fair_share("a"), gateway.fair_share("b"));
        let elsewhere = Gateway::new([8; 32], false);
        assert_ne!(gateway.cache_domain("a"), elsewhere.cache_domain("a"));
        let shared = Gateway::new([7; 32], true);
        assert_eq!(shared.cache_domain("a"), shared.cache_domain("b"));
        assert_ne!(shared.fair_share("a"), shared.fair_share("b"));
    }
}
