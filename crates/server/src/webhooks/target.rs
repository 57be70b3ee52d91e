//! Where webhooks may go, and how long they may take. What the policy means stands in `egress`.

use std::time::Duration;

use crate::egress::{self, EgressPolicy};

/// Where webhooks may go, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookPolicy {
    /// Names of hosts, `*.` for any name below; empty: every public host.
    pub allow_hosts: Vec<String>,
    /// Also addresses of this machine and of networks inside, and `http` without TLS.
    pub allow_private_addresses: bool,
    /// From connecting to the answer's status.
    pub timeout: Duration,
    /// The first retry comes about so long after the first attempt; each further one three times later.
    pub first_retry: Duration,
    /// After so many a message becomes a dead letter.
    pub max_attempts: u32,
}

impl Default for WebhookPolicy {
    fn default() -> Self {
        Self {
            allow_hosts: Vec::new(),
            allow_private_addresses: false,
            timeout: Duration::from_secs(10),
            first_retry: Duration::from_secs(5),
            max_attempts: 12,
        }
    }
}

impl WebhookPolicy {
    fn egress(&self) -> EgressPolicy {
        EgressPolicy {
            allow_hosts: self.allow_hosts.clone(),
            allow_private_addresses: self.allow_private_addresses,
        }
    }
}

/// Whether an endpoint may have this URL.
///
/// # Errors
/// In words, what it must be.
pub(crate) fn check_url(policy: &WebhookPolicy, url: &str) -> Result<(), String> {
    policy.egress().check_url(url, "webhooks.allow_hosts")
}

/// A client that goes where the policy allows: no redirects, no proxy.
pub(super) fn client(policy: &WebhookPolicy) -> ureq::Agent {
    egress::blocking_client(&policy.egress(), policy.timeout, "mintage-webhooks")
}
