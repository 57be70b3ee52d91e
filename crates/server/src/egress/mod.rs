//! The only way out of the process: where requests of ours may go, and the clients that hold to it: one that blocks for a
//! short answer, and one that reads a long one as it comes (`client`).
//!
//! A URL is checked when it is given, the address each time a connection is made: a name can resolve to another one by
//! then. Not here: what is sent. Invariants: no redirects, no proxies of the environment; no connection to an address
//! that the policy refuses, whatever a name resolves to.

mod client;
mod pool;
mod tls;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

pub(crate) use client::{Answer, Client, ClientConfig, EgressError};
pub use tls::CaCertificates;

/// Length of a URL.
const MAX_URL_BYTES: usize = 2048;

/// Where requests may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Names of hosts, `*.` for any name below; empty: every host.
    pub allow_hosts: Vec<String>,
    /// Also addresses of this machine and of networks inside, and `http` without TLS.
    pub allow_private_addresses: bool,
}

impl EgressPolicy {
    /// Whether a request may go to this URL, as far as the URL tells.
    ///
    /// # Errors
    /// In words, what it must be. `setting` is where hosts are allowed.
    pub fn check_url(&self, url: &str, setting: &str) -> Result<(), String> {
        if url.len() > MAX_URL_BYTES {
            return Err(format!("a URL has at most {MAX_URL_BYTES} bytes"));
        }
        match url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
            Some("https") => {}
            Some("http") if self.allow_private_addresses => {}
            _ => return Err("it must begin with https://".to_owned()),
        }
        let uri: Uri = url.parse().map_err(|_| "it is not a URL".to_owned())?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("it must hold no user name and no password".to_owned());
        }
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        let allowed = |entry: &String| match entry.strip_prefix("*.") {
            Some(above) => host.strip_suffix(above).is_some_and(|name| name.ends_with('.')),
            None => host == entry.as_str(),
        };
        if !self.allow_hosts.is_empty() && !self.allow_hosts.iter().any(allowed) {
            return Err(format!("the host `{host}` is not among `{setting}`"));
        }
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if literal.is_ok_and(|ip| !self.allows(ip)) {
            return Err(format!("`{host}` is not a public address"));
        }
        Ok(())
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allow_private_addresses || is_public(ip)
    }
}

/// Whether an address belongs to the public Internet (IANA's special-purpose registries).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || (a == 198 && (b == 18 || b == 19))
        // Multicast, reserved, broadcast.
        || a >= 224)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Translated by NAT64, tunnelled by 6to4: it is the inner address that counts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo and benchmarks, documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Only this block is given out; mapped, local and multicast addresses lie elsewhere.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Resolves names, and lets through only what the policy allows.
#[derive(Debug)]
struct Guarded {
    inner: DefaultResolver,
    policy: EgressPolicy,
}

impl Resolver for Guarded {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|address| self.policy.allows(address.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            return Err(ureq::Error::Other(NO_ADDRESS.into()));
        }
        Ok(allowed)
    }
}

const NO_ADDRESS: &str = "the host has no public address";

/// A client for threads that may block, for one answer within `timeout`.
pub(crate) fn blocking_client(policy: &EgressPolicy, timeout: Duration, name: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .http_status_as_error(false)
        .https_only(!policy.allow_private_addresses)
        .proxy(None)
        .user_agent(name)
        .tls_config(
            ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .build(),
        )
        .build();
    let resolver = Guarded { inner: DefaultResolver::default(), policy: policy.clone() };
    ureq::Agent::with_parts(config, DefaultConnector::default(), resolver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_held_to_the_policy() {
        let check = |allow: &[&str], private, url: &str, expected: &str| {
            let policy = EgressPolicy {
                allow_hosts: allow.iter().map(|&h| h.to_owned()).collect(),
                allow_private_addresses: private,
            };
            let said = policy.check_url(url, "allow_hosts").err().unwrap_or_default();
            assert_eq!(said, expected, "{allow:?} {private} {url}");
        };
        check(&[], false, "https://hooks.example.com/in?x=1", "");
        check(&[], false, "http://hooks.example.com/in", "it must begin with https://");
        check(&[], true, "http://127.0.0.1:9000/in", "");
        check(&[], false, "https://127.0.0.1/in", "`127.0.0.1` is not a public address");
        check(
            &[],
            false,
            "https://[::ffff:10.0.0.1]/",
            "`[::ffff:10.0.0.1]` is not a public address",
        );
        check(
            &[],
            false,
            "https://169.254.169.254/latest",
            "`169.254.169.254` is not a public address",
        );
        check(
            &[],
            false,
            "https://me:word@example.com/",
            "it must hold no user name and no password",
        );
        check(&[], false, "file:///etc/passwd", "it must begin with https://");
        check(&[], false, "nonsense", "it must begin with https://");
        check(&["*.example.com"], false, "https://a.example.com/", "");
        let refused = "the host `example.com.evil` is not among `allow_hosts`";
        check(&["*.example.com"], false, "https://example.com.evil/", refused);
        let refused = "the host `evilexample.com` is not among `allow_hosts`";
        check(&["*.example.com"], false, "https://evilexample.com/", refused);
        check(&["hooks.example.com"], false, "https://HOOKS.example.com/", "");
    }

    #[test]
    fn private_addresses_are_told_apart() {
        for text in [
            "10.1.2.3",
            "127.0.0.1",
            "0.0.0.0",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "192.0.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "8.8.8.8", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    /// A name that is not suspicious in itself, and leads inside.
    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_followed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let policy = EgressPolicy::default();
        let blocking = blocking_client(&policy, Duration::from_secs(5), "test");
        let to = url.clone();
        let error =
            tokio::task::spawn_blocking(move || blocking.post(&to).send_empty().unwrap_err());
        let error = error.await.unwrap().to_string();
        assert!(error.contains(NO_ADDRESS), "{error}");
        assert!(listener.accept().is_err(), "somebody connected");
    }
}
