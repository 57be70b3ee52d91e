//! `POST /api/v1/services/aigc/{text,multimodal}-generation/generation` and `POST /api/v1/tokenizer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_model::{SpecialTokens, TextModel, TokenId};
use serde_json::json;

use crate::app::App;
use crate::chat::{self, Route};
use crate::dashscope::parameters::ResultFormat;
use crate::dashscope::request::{Asked, GenerationRequest, TokenizerRequest};
use crate::dashscope::tasks::{self, Checked};
use crate::dashscope::writer::{GenerationWriter, Shape};
use crate::error::{self, ApiError};
use crate::job::{Incoming, find_model};
use crate::respond::respond;

pub(super) const TEXT: &str = "/api/v1/services/aigc/text-generation/generation";
pub(super) const MULTIMODAL: &str = "/api/v1/services/aigc/multimodal-generation/generation";
const TEXT_ROUTE: Route = Route { protocol: "dashscope.generation", id_prefix: "ds-" };
const MULTIMODAL_ROUTE: Route = Route { protocol: "dashscope.multimodal", id_prefix: "ds-" };

/// Answers where `content` is a string.
pub(crate) async fn generation(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, TEXT_ROUTE, false).await
}

/// Answers where `content` is a list of parts.
pub(crate) async fn multimodal_generation(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, MULTIMODAL_ROUTE, true).await
}

async fn answer(
    app: Arc<App>,
    request: Request,
    route: Route,
    content_as_parts: bool,
) -> Result<Response, ApiError> {
    let asked = Asked::read(request.headers())?;
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let request_id = incoming.request_id.clone();
    let prepare = move || {
        let usual = if content_as_parts { ResultFormat::Message } else { ResultFormat::Text };
        let request = GenerationRequest::parse(&body, asked, usual, shared.limits.max_choices)?;
        let shape = Shape {
            result_format: request.result_format,
            incremental_output: request.incremental_output,
            content_as_parts,
        };
        let job = chat::prepare(&shared, request.chat, route)?;
        let writer = GenerationWriter::new(&job, &request_id, shape);
        Ok((job, writer))
    };
    if asked.task {
        let path = if content_as_parts { MULTIMODAL } else { TEXT };
        let check = move || {
            let (job, _) = prepare()?;
            Ok(Checked { name: job.model_name().to_owned(), asked: job.asked })
        };
        return tasks::submit(&app, incoming, path, check).await;
    }
    let (job, writer) = app.on_text_thread(incoming.body.len(), prepare).await?;
    respond(&app, incoming, job, writer).await
}

/// Tells the tokens of a prompt as it stands, or of a chat as the model would read it.
pub(crate) async fn tokenizer(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let work = move || -> Result<(Arc<TextModel>, Arc<[TokenId]>), ApiError> {
        match TokenizerRequest::parse(&body)? {
            TokenizerRequest::Prompt { model, prompt } => {
                let model = find_model(&shared.models, &model)?;
                let ids = model.text.tokenizer().encode(&prompt, SpecialTokens::Allow);
                Ok((Arc::clone(&model.text), ids.into()))
            }
            TokenizerRequest::Chat(chat) => chat::count(&shared, &chat),
        }
    };
    let (text_model, ids) = app.on_text_thread(incoming.body.len(), work).await?;
    let text = |id: &TokenId| {
        String::from_utf8_lossy(text_model.tokenizer().token_bytes(*id).unwrap_or(&[])).into_owned()
    };
    let tokens: Vec<String> = ids.iter().map(text).collect();
    Ok(error::json(json!({
        "output": {"token_ids": &*ids, "tokens": tokens},
        "usage": {"input_tokens": ids.len()},
        "request_id": incoming.request_id,
    })))
}
