//! The administration API as commands use it: of a running server, or of the data folder itself, without a server.
//!
//! Both answer the same requests through the same code (`mintage_server::Office`). Not here: what commands mean.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use mintage_server::{Books, Office};
use serde_json::Value;

use crate::config::Settings;
use crate::{kept_ledger, keys_folder, output};

/// The environment variable with the key that administers a server.
pub(crate) const KEY_VARIABLE: &str = "MINTAGE_ADMIN_KEY";
/// Bytes of the longest answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Pages of the longest list that a command reads.
const MAX_PAGES: usize = 1000;

/// Which server to ask.
#[derive(Debug, Default, Args)]
pub(crate) struct ServerArgs {
    /// Administer the server at this address, with the key in MINTAGE_ADMIN_KEY [default: the data folder itself]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "MINTAGE_SERVER",
        help_heading = "Administration"
    )]
    server: Option<String>,
}

/// Where to administer, and how to show it.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Write answers as JSON
    #[arg(long, global = true, help_heading = "Administration")]
    json: bool,
}

/// Whether a command needs balances, usage or prices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Tenants, keys, limits: works on the data folder beside a running server.
    Directory,
    /// Money: the data folder must not be a running server's.
    Ledger,
}

/// Who answers.
enum Desk {
    Folder(Box<Office>),
    Server { runtime: tokio::runtime::Runtime, http: reqwest::Client, base: String, key: String },
}

/// Asks, and shows answers.
pub(crate) struct AdminClient {
    desk: Desk,
    json: bool,
}

impl AdminClient {
    pub(crate) fn open(settings: &Settings, args: &AdminArgs, needs: Needs) -> Result<Self> {
        let desk = match &args.server.server {
            Some(url) => server(url)?,
            None => Desk::Folder(Box::new(folder(settings, needs)?)),
        };
        Ok(Self { desk, json: args.json })
    }

    /// The server that is named; `None` where none is.
    pub(crate) fn of_server(args: &ServerArgs) -> Result<Option<Self>> {
        let Some(url) = &args.server else { return Ok(None) };
        Ok(Some(Self { desk: server(url)?, json: false }))
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(method, path, body)?).unwrap_or_default())
    }

    /// An answer as it is: a page, a table.
    pub(crate) fn text(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, text) = match &self.desk {
            Desk::Folder(office) => {
                let answer = office.call(method, path, body.as_bytes());
                (answer.status, answer.body)
            }
            Desk::Server { runtime, http, base, key } => {
                runtime.block_on(asked(http, method, &format!("{base}{path}"), key, body))?
            }
        };
        if (200..300).contains(&status) {
            return Ok(text);
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        match value["error"]["message"].as_str() {
            Some(message) => bail!("{}", message.trim_end_matches('.')),
            None => bail!("the server answered with status {status}"),
        }
    }

    /// All items of a list, over its pages.
    pub(crate) fn list(&self, path: &str) -> Result<Value> {
        let (mut all, mut after) = (Vec::new(), String::new());
        let sign = if path.contains('?') { '&' } else { '?' };
        for _ in 0..MAX_PAGES {
            let mut page = self.get(&format!("{path}{sign}limit=100{after}"))?;
            if let Value::Array(data) = page["data"].take() {
                all.extend(data);
            }
            match (&page["has_more"], page["last_id"].as_str()) {
                (Value::Bool(true), Some(last)) => after = format!("&after={}", escaped(last)),
                _ => return Ok(Value::Array(all)),
            }
        }
        Err(anyhow!("the list does not end"))
    }

    /// The id of an organisation given by id or name.
    pub(crate) fn organisation(&self, given: &str) -> Result<String> {
        if given.starts_with("org-") {
            return Ok(given.to_owned());
        }
        let all = self.list("/admin/v1/organizations")?;
        let found = all.as_array().into_iter().flatten().find(|org| org["name"] == given);
        let id = found.and_then(|org| org["id"].as_str());
        id.map(str::to_owned).with_context(|| {
            format!("there is no organisation called `{given}`; `mintage org list` shows all")
        })
    }

    /// Shows one thing or a list: these fields as a table, or everything as JSON.
    pub(crate) fn show(&self, value: &Value, fields: &[&str]) -> Result<()> {
        if self.json {
            output::print(&format!("{value:#}\n"))?;
            return Ok(());
        }
        let one = std::slice::from_ref(value);
        let items = value.as_array().map_or(one, Vec::as_slice);
        let rows: Vec<Vec<String>> =
            items.iter().map(|item| fields.iter().map(|f| cell(&item[*f])).collect()).collect();
        let header: Vec<String> =
            fields.iter().map(|f| f.replace('_', " ").to_ascii_uppercase()).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        output::print(&output::table(&header, &rows))?;
        Ok(())
    }

    /// Shows a key just made: the one time.
    pub(crate) fn show_secret(&self, made: &Value) -> Result<()> {
        if self.json {
            return self.show(made, &[]);
        }
        let (id, value) = (cell(&made["id"]), cell(&made["value"]));
        eprintln!("key {id}; this is the only time it is shown:");
        output::print(&format!("{value}\n"))?;
        Ok(())
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A part of a path or a value of a query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    text.as_bytes()
        .iter()
        .map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn folder(settings: &Settings, needs: Needs) -> Result<Office> {
    let directory = Arc::new(keys_folder::open_by(settings)?);
    if needs == Needs::Directory {
        return Ok(Office::new(directory, None));
    }
    let opened = kept_ledger::open(settings).map_err(kept_ledger::in_use(settings));
    let (ledger, prices) = opened?;
    let (ledger, prices) = (Arc::new(ledger), Arc::new(prices));
    let utc_offset_minutes = i16::try_from(settings.ledger.utc_offset_minutes)
        .context("`ledger.utc_offset_minutes` is at most a day")?;
    Ok(Office::new(
        directory,
        Some(Books { ledger, prices, utc_offset_minutes, webhooks: settings.webhooks.policy() }),
    ))
}

fn server(url: &str) -> Result<Desk> {
    let key = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()).with_context(|| {
        format!("set {KEY_VARIABLE} to a key that administers; `mintage key create NAME --operator` makes one on the server's machine")
    })?;
    let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let http = reqwest::Client::builder()
        .connect_timeout(std::time::Duration::from_secs(5))
        .timeout(std::time::Duration::from_secs(60))
        .build()?;
    Ok(Desk::Server { runtime, http, base, key })
}

async fn asked(
    http: &reqwest::Client,
    method: &str,
    url: &str,
    key: &str,
    body: String,
) -> Result<(u16, String)> {
    let method = reqwest::Method::from_bytes(method.as_bytes())?;
    let mut request = http.request(method, url).bearer_auth(key);
    if !body.is_empty() {
        request = request.header("content-type", "application/json").body(body);
    }
    let unreachable = || format!("{url} does not answer; is the server running there?");
    let mut response = request.send().await.with_context(unreachable)?;
    let status = response.status().as_u16();
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.with_context(unreachable)? {
        if text.len() + chunk.len() > MAX_ANSWER_BYTES {
            bail!("the answer is longer than {MAX_ANSWER_BYTES} bytes");
        }
        text.extend_from_slice(&chunk);
    }
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}
