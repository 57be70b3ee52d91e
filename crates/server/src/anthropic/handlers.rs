//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::json;

use crate::anthropic::request::{MessagesRequest, Purpose};
use crate::anthropic::writer::{Eager, MessageWriter};
use crate::app::App;
use crate::chat::{self, Route};
use crate::error::{self, ApiError};
use crate::job::Incoming;
use crate::respond::respond;

const ROUTE: Route = Route { protocol: "anthropic.messages", id_prefix: "msg_" };
const BETA: &str = "anthropic-beta";
/// The beta that asks for arguments as they come, without its date.
const EAGER_BETA: &str = "fine-grained-tool-streaming";

/// Answers with a message.
pub(crate) async fn messages(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let all_eager = asks_for(request.headers(), EAGER_BETA);
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let request_id = incoming.request_id.clone();
    let prepare = move || {
        let request = MessagesRequest::parse(&body, Purpose::Answer)?;
        let eager = if all_eager { Eager::All } else { Eager::Tools(request.eager_tools) };
        let job = chat::prepare(&shared, request.chat, ROUTE)?;
        let writer = MessageWriter::new(&job, &request_id, eager);
        Ok((job, writer))
    };
    let (job, writer) = app.on_text_thread(incoming.body.len(), prepare).await?;
    respond(&app, incoming, job, writer).await
}

/// Tells how long the prompt of a message would be.
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let count = move || {
        let request = MessagesRequest::parse(&body, Purpose::Count)?;
        let (_, tokens) = chat::count(&shared, &request.chat)?;
        Ok(tokens.len())
    };
    let tokens = app.on_text_thread(incoming.body.len(), count).await?;
    Ok(error::json(json!({"input_tokens": tokens})))
}

/// Whether a beta is named in the headers, whatever its date.
fn asks_for(headers: &HeaderMap, beta: &str) -> bool {
    let values = headers.get_all(BETA).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|name| name.trim().starts_with(beta))
}
