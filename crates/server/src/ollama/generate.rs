//! `POST /api/generate`: one prompt, in the model's template or, `raw` or without one, as it stands.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use crate::app::App;
use crate::chat::{self, ChatRequest, Message, Prompt, Role, Route};
use crate::error::ApiError;
use crate::fields::{Fields, Null, unsupported};
use crate::job::{Incoming, Job, find_targets};
use crate::ollama::messages::refuse_images;
use crate::ollama::options::{Generation, take_model};
use crate::ollama::writer::{Form, LineWriter, loaded};
use crate::respond::{json_response, respond};
use crate::served::Target;

const ROUTE: Route = Route { protocol: "ollama.generate", id_prefix: "ollama-" };

/// A prompt to answer.
struct GenerateRequest {
    model: String,
    system: Option<String>,
    prompt: String,
    /// What comes behind the answer, which is filled in between. Not empty.
    suffix: Option<String>,
    /// No template.
    raw: bool,
    generation: Generation,
}

/// Answers a prompt.
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body, arrival) = (Arc::clone(&app), incoming.body.clone(), incoming.arrival);
    let prepare = move || {
        let request = GenerateRequest::parse(&body)?;
        if request.prompt.is_empty() {
            let (target, _) = find_targets(&shared.models, &request.model, "")?;
            return loaded(target.name(), Form::Generate).map(Err);
        }
        let job = request.job(&shared)?;
        let writer = LineWriter::new(&job, Form::Generate, arrival);
        Ok(Ok((job, writer)))
    };
    match app.on_text_thread(incoming.body.len(), prepare).await? {
        Ok((job, writer)) => respond(&app, incoming, job, writer).await,
        Err(loaded) => Ok(json_response(loaded)),
    }
}

impl GenerateRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = take_model(&mut fields)?;
        refuse_images(&mut fields, "")?;
        if fields.string("template", Null::Absent)?.is_some_and(|text| !text.is_empty()) {
            let what = "the model's own template is used; send `raw` for none";
            return Err(unsupported("template", what));
        }
        if fields.array("context", Null::Absent)?.is_some_and(|tokens| !tokens.is_empty()) {
            return Err(unsupported("context", "send the conversation to `/api/chat`"));
        }
        let request = Self {
            model,
            system: fields.string("system", Null::Absent)?.filter(|text| !text.is_empty()),
            prompt: fields.string("prompt", Null::Absent)?.unwrap_or_default(),
            suffix: fields.string("suffix", Null::Absent)?.filter(|text| !text.is_empty()),
            raw: fields.bool("raw", Null::Absent)?.unwrap_or(false),
            generation: Generation::take(&mut fields)?,
        };
        fields.ignore_rest();
        Ok(request)
    }

    fn job(self, app: &App) -> Result<Job, ApiError> {
        let (target, _) = find_targets(&app.models, &self.model, "")?;
        let is_for_chats = match &target {
            Target::Own(model) => model.text.template().is_some(),
            Target::Remote(_) => true,
        };
        let system = self.system.map(|text| Message::new(Role::System, text));
        let generation = self.generation;
        let chat = ChatRequest {
            format: generation.format,
            format_field: "format".to_owned(),
            reasoning: generation.reasoning,
            max_tokens: generation.max_tokens,
            max_tokens_field: "options.num_predict",
            options: generation.options,
            stream: generation.stream,
            ..ChatRequest::new(self.model, Vec::new())
        };
        if self.suffix.is_some() {
            let prompt = Prompt::Text(self.prompt);
            return chat::prepare_text(app, chat, prompt, self.suffix.as_deref(), ROUTE);
        }
        if !self.raw && is_for_chats {
            let prompt = Message::new(Role::User, self.prompt);
            let messages = system.into_iter().chain([prompt]).collect();
            return chat::prepare(app, ChatRequest { messages, ..chat }, ROUTE);
        }
        let text = system.map_or(String::new(), |system| system.text + "\n\n") + &self.prompt;
        chat::prepare_text(app, chat, Prompt::Text(text), None, ROUTE)
    }
}
