//! The same load through a second server, which has the first behind a model's name: with a connection for each request,
//! and with connections that are kept.

use std::process::Command;
use std::time::Duration;

use mintage_server::{Access, ApiKey, Flavour, Server, ServerConfig, UpstreamConfig};

use crate::{Outcome, house, processor_time, runtime};

/// More than connections of any load here.
const MANY: usize = 4096;

pub(crate) fn bench(model: &str, seconds: &str, connections: &str) -> Outcome<()> {
    for kept in [0, MANY] {
        let folder = tempfile::tempdir()?;
        let runtime = runtime()?;
        let entered = runtime.enter();
        let back = house(model, folder.path(), false, Duration::ZERO)?;
        let url = format!("http://{}/v1", back.server.local_addr());
        let upstream = UpstreamConfig {
            api_key: Some(ApiKey::new(&back.key)?),
            flavour: Flavour::Mintage,
            allow_private_address: true,
            max_in_flight: MANY,
            max_idle_connections: kept,
            ..UpstreamConfig::new("scripted", &url, "scripted", 4096)
        };
        let config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            upstreams: vec![upstream],
            ..ServerConfig::default()
        };
        let front = Server::bind(config, Vec::new(), Access::Open, None)?;
        let address = front.local_addr().to_string();
        runtime.spawn(back.server.run(std::future::pending()));
        runtime.spawn(front.run(std::future::pending()));
        drop(entered);
        let before = processor_time()?;
        let arguments = ["load", &address, "none", seconds, connections, "0"];
        let child = Command::new(std::env::current_exe()?).args(arguments).output()?;
        if !child.status.success() {
            return Err(String::from_utf8_lossy(&child.stderr).into_owned().into());
        }
        let said = String::from_utf8(child.stdout)?;
        let count = said.split(", ").nth(3).and_then(|part| part.split(' ').next());
        let count: f64 = count.ok_or("the load says nothing")?.parse()?;
        let spent = (processor_time()? - before).as_secs_f64() * 1e6 / count;
        let how = if kept == 0 { "a connection each" } else { "connections kept" };
        println!("{connections} connections, {how}: {}, both servers {spent:.0} us", said.trim());
    }
    Ok(())
}
