//! `POST /api/chat`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use crate::app::App;
use crate::chat::{self, ChatRequest, Role, Route};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::{Incoming, find_targets};
use crate::ollama::messages::{take_messages, take_tools};
use crate::ollama::options::{Generation, take_model};
use crate::ollama::writer::{Form, LineWriter, loaded};
use crate::respond::{json_response, respond};

const ROUTE: Route = Route { protocol: "ollama.chat", id_prefix: "ollama-" };

/// Answers a chat.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body, arrival) = (Arc::clone(&app), incoming.body.clone(), incoming.arrival);
    let prepare = move || {
        let request = parse(&body)?;
        if request.messages.is_empty() {
            let (target, _) = find_targets(&shared.models, &request.model, "")?;
            return loaded(target.name(), Form::Chat).map(Err);
        }
        let job = chat::prepare(&shared, request, ROUTE)?;
        let writer = LineWriter::new(&job, Form::Chat, arrival);
        Ok(Ok((job, writer)))
    };
    match app.on_text_thread(incoming.body.len(), prepare).await? {
        Ok((job, writer)) => respond(&app, incoming, job, writer).await,
        Err(loaded) => Ok(json_response(loaded)),
    }
}

fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let messages = take_messages(&mut fields)?;
    let tools = take_tools(&mut fields)?;
    let generation = Generation::take(&mut fields)?;
    fields.ignore_rest();
    let continues_last =
        messages.last().is_some_and(|m| m.role == Role::Assistant && m.calls.is_empty());
    Ok(ChatRequest {
        tools,
        continues_last,
        format: generation.format,
        format_field: "format".to_owned(),
        reasoning: generation.reasoning,
        max_tokens: generation.max_tokens,
        max_tokens_field: "options.num_predict",
        options: generation.options,
        stream: generation.stream,
        ..ChatRequest::new(model, messages)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m:latest", "stream": false, "format": {"type": "object"}, "think": "low",
            "messages": [
                {"role": "user", "content": "a", "images": []},
                {"role": "assistant", "content": "", "thinking": "h", "tool_calls": [
                    {"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "42", "tool_name": "f"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "options": {"num_predict": 5, "stop": ["x"], "temperature": 0.5, "repeat_last_n": 64, "mirostat": 0},
        });
        check_mutations(&good, parse);
    }
}
