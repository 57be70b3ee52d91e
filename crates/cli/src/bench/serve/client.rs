//! One streamed request to any OpenAI-compatible server, timed as its reader sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::statistics::Sample;
use super::workload::Planned;

/// An answer's lines are short; a server that sends an endless one is cut off.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// A server and the model asked of it.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    model: String,
}

impl Client {
    /// `base` with or without `/v1`. Without a model the server's first one is taken.
    pub(super) async fn connect(
        base: &str,
        key: Option<String>,
        model: Option<String>,
    ) -> Result<Self> {
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
        let mut client = Self { http, base, key, model: model.unwrap_or_default() };
        if client.model.is_empty() {
            let url = format!("{}/v1/models", client.base);
            let response = client
                .authorised(client.http.get(&url))
                .send()
                .await
                .with_context(|| url.clone())?;
            let status = response.status();
            let models: Value =
                response.json().await.with_context(|| format!("{url}: {status}"))?;
            let first = models["data"][0]["id"].as_str();
            client.model = first
                .with_context(|| {
                    format!("{url} names no model ({status}); give `--model` or `--key`")
                })?
                .to_owned();
        }
        Ok(client)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends `planned` now and reads the answer to its end. Failures are part of the sample.
    pub(super) async fn ask(&self, planned: &Planned, started: Instant, due: Duration) -> Sample {
        let mut sample = Sample {
            due,
            sent: started.elapsed(),
            pieces: Vec::with_capacity(planned.output_tokens as usize),
            ended: Duration::ZERO,
            output_tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            error: None,
        };
        if let Err(error) = self.stream(planned, started, &mut sample).await {
            sample.error = Some(format!("{error:#}"));
        }
        sample.ended = started.elapsed();
        if sample.output_tokens == 0 {
            sample.output_tokens = u32::try_from(sample.pieces.len()).unwrap_or(u32::MAX);
        }
        sample
    }

    async fn stream(&self, planned: &Planned, started: Instant, sample: &mut Sample) -> Result<()> {
        let body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": planned.prompt}],
            "max_tokens": planned.output_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let url = format!("{}/v1/chat/completions", self.base);
        let response = self.authorised(self.http.post(url)).json(&body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {:.200}", response.text().await.unwrap_or_default());
        }
        let mut bytes = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(part) = bytes.next().await {
            buffer.extend_from_slice(&part?);
            let now = started.elapsed();
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if event(&line, now, sample)? {
                    return Ok(());
                }
            }
            if buffer.len() > MAX_LINE_BYTES {
                bail!("a line of more than {MAX_LINE_BYTES} bytes");
            }
        }
        bail!("the stream ended without [DONE]")
    }
}

/// Takes one line of the stream; true at its end.
fn event(line: &[u8], now: Duration, sample: &mut Sample) -> Result<bool> {
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(false) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Ok(true);
    }
    let event: Value = serde_json::from_slice(data).context("an event that is not JSON")?;
    if let Some(error) = event.get("error") {
        bail!("error event: {error}");
    }
    let delta = &event["choices"][0]["delta"];
    let has_text = ["content", "reasoning_content"]
        .iter()
        .any(|field| delta[field].as_str().is_some_and(|text| !text.is_empty()));
    if has_text {
        sample.pieces.push(now);
    }
    let usage = &event["usage"];
    let count = |value: &Value| value.as_u64().and_then(|count| u32::try_from(count).ok());
    if let Some(tokens) = count(&usage["completion_tokens"]) {
        sample.output_tokens = tokens;
        sample.prompt_tokens = count(&usage["prompt_tokens"]).unwrap_or(0);
        sample.cached_tokens = count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
    }
    Ok(false)
}
