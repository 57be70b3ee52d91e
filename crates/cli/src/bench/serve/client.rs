//! One streamed request to any OpenAI-compatible server, timed as its reader sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::statistics::Sample;
use super::workload::Planned;

/// An answer's lines are short; a server that sends an endless one is cut off.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// A kept connection is used again within this time only: servers close idle ones after some seconds (llama-server after
/// five), and a request sent into that moment would count as the server's failure.
const REUSE_WITHIN: Duration = Duration::from_secs(1);

/// What is said of a failed answer at most.
const MAX_ERROR_BYTES: usize = 200;

/// A server and the model asked of it.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    model: String,
    asking: Asking,
}

/// How requests are made, besides their text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    /// Asks for exactly the planned number of tokens, by `ignore_eos`, which vLLM, SGLang, llama.cpp and Mintage know.
    pub(super) ignore_eos: bool,
    /// After this a request has failed.
    pub(super) timeout: Duration,
}

impl Client {
    /// `base` with or without `/v1`. Without a model the server's first one is taken.
    pub(super) async fn connect(
        base: &str,
        key: Option<String>,
        model: Option<String>,
        asking: Asking,
    ) -> Result<Self> {
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(REUSE_WITHIN)
            .build()?;
        let mut client = Self { http, base, key, model: model.unwrap_or_default(), asking };
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
        self.ask_until(planned, started, due, std::future::pending()).await
    }

    /// As [`Client::ask`], but hangs up when `stop` is done: what was read until then is the sample.
    pub(super) async fn ask_until(
        &self,
        planned: &Planned,
        started: Instant,
        due: Duration,
        stop: impl Future<Output = ()>,
    ) -> Sample {
        let mut sample =
            Sample { class: planned.class, due, sent: started.elapsed(), ..Sample::default() };
        let stream = self.stream(planned, started, &mut sample);
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(self.asking.timeout, stream) => outcome,
            () = stop => Ok(Ok(())),
        };
        sample.error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("not answered within {} s", self.asking.timeout.as_secs())),
        };
        sample.ended = started.elapsed();
        if sample.output_tokens == 0 {
            sample.output_tokens = u32::try_from(sample.pieces.len()).unwrap_or(u32::MAX);
        }
        sample
    }

    async fn stream(&self, planned: &Planned, started: Instant, sample: &mut Sample) -> Result<()> {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": planned.prompt}],
            "max_tokens": planned.output_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.asking.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        let url = format!("{}/v1/chat/completions", self.base);
        let response = self.authorised(self.http.post(url)).json(&body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", beginning(response).await);
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

/// The beginning of an answer that is an error, however long it is.
async fn beginning(response: reqwest::Response) -> String {
    let (mut bytes, mut text) = (response.bytes_stream(), Vec::new());
    while text.len() < MAX_ERROR_BYTES
        && let Some(Ok(part)) = bytes.next().await
    {
        text.extend_from_slice(&part[..part.len().min(MAX_ERROR_BYTES)]);
    }
    text.truncate(MAX_ERROR_BYTES);
    String::from_utf8_lossy(&text).trim().to_owned()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::statistics::Sample;
    use super::event;

    #[test]
    fn a_stream_is_read_as_servers_write_it() {
        let mut sample = Sample::default();
        for (index, (line, expected)) in [
            (r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Some(false)),
            (r#"data: {"choices":[{"delta":{"content":"a"}}]}"#, Some(false)),
            (r#"data:{"choices":[{"delta":{"reasoning_content":"b"}}]}"#, Some(false)),
            (": keep-alive", Some(false)),
            ("", Some(false)),
            ("data: {broken", None),
            (r#"data: {"error":{"message":"no memory"}}"#, None),
            (
                r#"data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                Some(false),
            ),
            (r#"data: {"usage":{"completion_tokens":-1}}"#, Some(false)),
            ("data: [DONE]\r", Some(true)),
        ]
        .into_iter()
        .enumerate()
        {
            let now = Duration::from_millis(index as u64);
            let got = event(line.as_bytes(), now, &mut sample).ok();
            assert_eq!(got, expected, "{line}");
        }
        assert_eq!(sample.pieces, [Duration::from_millis(1), Duration::from_millis(2)]);
        assert_eq!((sample.prompt_tokens, sample.output_tokens, sample.cached_tokens), (9, 7, 4));
    }
}
