//! Where webhooks may go.
//!
//! The URL is checked when an endpoint is made, the address each time a request leaves: a name can resolve to another
//! one by then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Length of a URL.
const MAX_URL_BYTES: usize = 2048;

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

/// Whether an endpoint may have this URL.
///
/// # Errors
/// In words, what it must be.
pub(crate) fn check_url(policy: &WebhookPolicy, url: &str) -> Result<(), String> {
    if url.len() > MAX_URL_BYTES {
        return Err(format!("a URL has at most {MAX_URL_BYTES} bytes"));
    }
    match url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("https") => {}
        Some("http") if policy.allow_private_addresses => {}
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
    if !policy.allow_hosts.is_empty() && !policy.allow_hosts.iter().any(allowed) {
        return Err(format!("the host `{host}` is not among `webhooks.allow_hosts`"));
    }
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if literal.is_ok_and(|ip| !policy.allow_private_addresses && !is_public(ip)) {
        return Err(format!("`{host}` is not a public address"));
    }
    Ok(())
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
    allow_private: bool,
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
        for address in found.iter().filter(|a| self.allow_private || is_public(a.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            return Err(ureq::Error::Other("the host has no public address".into()));
        }
        Ok(allowed)
    }
}

/// A client that goes where the policy allows: no redirects, no proxy.
pub(super) fn client(policy: &WebhookPolicy) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(policy.timeout))
        .max_redirects(0)
        .http_status_as_error(false)
        .https_only(!policy.allow_private_addresses)
        .proxy(None)
        .user_agent("mintage-webhooks")
        .tls_config(
            ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .build(),
        )
        .build();
    let resolver = Guarded {
        inner: DefaultResolver::default(),
        allow_private: policy.allow_private_addresses,
    };
    ureq::Agent::with_parts(config, DefaultConnector::default(), resolver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_held_to_the_policy() {
        let check = |allow: &[&str], private, url: &str, expected: &str| {
            let policy = WebhookPolicy {
                allow_hosts: allow.iter().map(|&h| h.to_owned()).collect(),
                allow_private_addresses: private,
                ..WebhookPolicy::default()
            };
            let said = check_url(&policy, url).err().unwrap_or_default();
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
        let refused = "the host `example.com.evil` is not among `webhooks.allow_hosts`";
        check(&["*.example.com"], false, "https://example.com.evil/", refused);
        let refused = "the host `evilexample.com` is not among `webhooks.allow_hosts`";
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
    #[test]
    fn a_name_that_leads_inside_is_not_followed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let error = client(&WebhookPolicy::default()).post(&url).send_empty().unwrap_err();
        assert!(error.to_string().contains("no public address"), "{error}");
        assert!(listener.accept().is_err(), "somebody connected");
    }
}
