//! TLS to other services: certificates made here, of an authority that only `ca` names.

use std::sync::Arc;

use mintage_server::{CaCertificates, ServerConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{House, says, start_with};
use crate::hostile::{good_text, read_request};
use crate::upstreams::{FAR, upstream_at};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pem(authority: &Authority) -> CaCertificates {
    CaCertificates::from_pem(authority.pem().as_bytes()).unwrap()
}

/// A service with a certificate for `name`, which ends with that year. Returns its port.
async fn service(authority: &Authority, name: &str, until_year: i32) -> u16 {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = date_time_ymd(until_year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us hangs up.
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                read_request(&mut stream).await;
                let _ = stream.write_all(good_text().as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

async fn before(port: u16, ca: CaCertificates) -> House {
    let mut upstream = upstream_at(([127, 0, 0, 1], port).into());
    upstream.base_url = format!("https://localhost:{port}/v1");
    upstream.ca = ca;
    let with = |config: &mut ServerConfig| config.upstreams.push(upstream);
    start_with(with, |_| Ok(says("own"))).await
}

#[tokio::test]
async fn a_service_is_trusted_where_its_authority_is_and_the_certificate_is_its_own() {
    let (ours, theirs) = (authority(), authority());
    let check = async |port: u16, ca: CaCertificates, expected: u16| {
        let house = before(port, ca).await;
        let reply = house.chat(json!({"model": FAR, "max_tokens": 100})).await;
        assert_eq!(reply.status, expected, "{}", reply.body);
        if expected == 200 {
            house.settled(1).await;
            return;
        }
        // The operator can mend it, and trying again cannot.
        assert_eq!(reply.json()["error"]["code"], "upstream_refused", "{}", reply.body);
        house.metric(&format!("mintage_upstream_retries_total{{upstream=\"{FAR}\"}} 0")).await;
        house.settled(0).await;
    };
    let good = service(&ours, "localhost", 4000).await;
    check(good, pem(&ours), 200).await;
    check(good, CaCertificates::default(), 502).await;
    check(good, pem(&theirs), 502).await;
    check(service(&ours, "localhost", 2020).await, pem(&ours), 502).await;
    check(service(&ours, "other.example", 4000).await, pem(&ours), 502).await;
}
