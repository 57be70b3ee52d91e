//! A job of vectors on its way: sequences submitted to an engine here, or one request to another service.
//!
//! Invariants: nothing is tried elsewhere once a target has it, but where a service gave no answer; dropping what runs
//! stops it, and it is settled all the same.

use std::sync::Arc;

use futures_util::StreamExt;
use mintage_ledger::limits::Standings;
use mintage_model::{Event, FinishReason, GenerateRequest, SubmitError, TokenId};

use super::job::Work;
use super::{Vector, VectorJob};
use crate::app::App;
use crate::error::ApiError;
use crate::job::{Ending, Incoming, admit, base_request, covered, deadline};
use crate::metered::{Meter, MeteredStream, RequestFacts};
use crate::served::VectorModel;
use crate::structured;
use crate::till::Arrival;
use crate::upstream::{BY_OURSELVES, VectorRelay, VectorsComing};

/// The vectors of one request while they are made. Dropping it stops that.
pub(super) struct Running {
    source: Source,
    pub(super) meter: Meter,
    pub(super) standings: Standings,
    ending: Ending,
}

enum Source {
    /// One stream a sequence.
    Engine(Vec<MeteredStream>),
    Service(VectorsComing),
    /// A service has answered.
    Heard(Vec<Vector>),
}

/// Submits the job, or the same for another target where one cannot or gives no answer. Returns the one that runs.
pub(super) async fn begin(
    app: &App,
    incoming: &Incoming,
    mut job: VectorJob,
) -> Result<(VectorJob, Running), ApiError> {
    loop {
        let error = match begun(app, incoming, &job).await {
            Ok(running) => return Ok((job, running)),
            Err(error) => error,
        };
        match structured::blocking(|| job.next(&error)) {
            Some(next) => job = next?,
            None => return Err(error),
        }
    }
}

async fn begun(app: &App, incoming: &Incoming, job: &VectorJob) -> Result<Running, ApiError> {
    let tokens = job.most_tokens();
    let submit = || match &job.work {
        Work::Own { model, sequences, .. } => submit(app, incoming, job, model, sequences),
        Work::Remote(relay) => ask(app, incoming, job, relay),
    };
    let mut running = covered(app, incoming, job.model_name(), tokens, submit).await?;
    running.heard().await?;
    Ok(running)
}

/// Limits and money let it in: how they stand, and its meter.
fn meter(
    app: &App,
    incoming: &Incoming,
    job: &VectorJob,
    model_digest: &Arc<str>,
    metered_by: &'static str,
) -> Result<(Standings, Meter), ApiError> {
    let name = job.model_name();
    let arrival = Arrival {
        response_id: job.id.as_str().into(),
        model: name.into(),
        model_digest: Arc::clone(model_digest),
        metered_by,
        protocol: job.protocol,
        client: Arc::clone(&incoming.client),
        prompt_tokens: job.most_tokens(),
        max_output_tokens: 0,
        choices: 1,
        batch: incoming.line.is_some(),
    };
    let admitted = admit(app, incoming, job.asked(), &arrival)?;
    let metrics = app.metrics.of(name);
    let metrics = metrics.ok_or_else(|| ApiError::internal("a model without metrics"))?;
    let facts = RequestFacts {
        request_id: incoming.request_id.clone(),
        response_id: job.id.clone(),
        principal: Arc::clone(&incoming.caller.principal),
        model: name.to_owned(),
        arrival: incoming.arrival,
        streamed: false,
        batch: incoming.line.is_some(),
        // Every sequence has a prompt of its own.
        n: 1,
    };
    let standings = admitted.standings;
    Ok((standings, Meter::new(facts, admitted, metrics, app.settling.clone())))
}

/// Submits all sequences; if one is refused, those already taken are cancelled (and settled) by being dropped.
fn submit(
    app: &App,
    incoming: &Incoming,
    job: &VectorJob,
    model: &VectorModel,
    sequences: &[Arc<[TokenId]>],
) -> Result<Running, ApiError> {
    let (standings, meter) = meter(app, incoming, job, &model.digest, "")?;
    let base = base_request(app, incoming);
    let mut streams = Vec::with_capacity(sequences.len());
    for (index, sequence) in (0..).zip(sequences) {
        let request = GenerateRequest {
            request_id: format!("{}-{index}", job.id),
            prompt: Arc::clone(sequence),
            max_new_tokens: 0,
            ..base.clone()
        };
        let stream =
            meter.submit(model.engine.as_ref(), index, request, None).map_err(|error| {
                meter.forgive();
                if matches!(error, SubmitError::QueueFull { .. }) {
                    app.metrics.refused("queue_full");
                }
                ApiError::refused(error)
            })?;
        streams.push(stream);
    }
    let ending = Ending::new(app, incoming);
    Ok(Running { source: Source::Engine(streams), meter, standings, ending })
}

/// Hands the request to another service; whether that answers shows later.
fn ask(
    app: &App,
    incoming: &Incoming,
    job: &VectorJob,
    relay: &VectorRelay,
) -> Result<Running, ApiError> {
    let digest = &relay.remote.digest;
    let (standings, meter) = meter(app, incoming, job, digest, BY_OURSELVES)?;
    let limit = app.limits.request_timeout;
    let coming = relay.clone().start(&meter, deadline(app, incoming), limit.as_secs());
    let ending = Ending::new(app, incoming);
    Ok(Running { source: Source::Service(coming), meter, standings, ending })
}

impl Running {
    /// Resolves once a service has answered, or with why it did not. Of an engine, at once.
    async fn heard(&mut self) -> Result<(), ApiError> {
        let Source::Service(coming) = &mut self.source else { return Ok(()) };
        let vectors = tokio::select! {
            biased;
            vectors = coming.heard() => vectors?,
            error = self.ending.clone().reached() => {
                // What comes after all is nobody's, and may be computed and billed again.
                self.meter.forgive();
                return Err(error);
            }
        };
        self.source = Source::Heard(vectors);
        Ok(())
    }

    /// All vectors, in order. They are computed side by side whatever the order in which they are read.
    pub(super) async fn read(&mut self, request_timeout_s: u64) -> Result<Vec<Vector>, ApiError> {
        let streams = match &mut self.source {
            Source::Engine(streams) => streams,
            Source::Heard(vectors) => return Ok(std::mem::take(vectors)),
            Source::Service(_) => return Err(ApiError::internal("a service was not waited for")),
        };
        let ending = self.ending.clone().reached();
        tokio::pin!(ending);
        let mut vectors = Vec::with_capacity(streams.len());
        for stream in streams {
            tokio::select! {
                biased;
                vector = read_one(stream, request_timeout_s) => vectors.push(vector?),
                error = &mut ending => return Err(error),
            }
        }
        Ok(vectors)
    }
}

async fn read_one(stream: &mut MeteredStream, request_timeout_s: u64) -> Result<Vector, ApiError> {
    let mut vector = None;
    while let Some(event) = stream.next().await {
        match event {
            Event::Vector(given) => vector = Some(given),
            Event::Finished(finish) => {
                return match finish.reason {
                    FinishReason::Length | FinishReason::Stop(_) => {
                        vector.ok_or_else(|| ApiError::internal("an engine gave no vector"))
                    }
                    FinishReason::Deadline => Err(ApiError::deadline(request_timeout_s)),
                    // We cancel only what nobody reads any more: then the engine is going down.
                    FinishReason::Cancelled => Err(ApiError::shutting_down()),
                    FinishReason::Fault(fault) => Err(ApiError::engine(&fault)),
                };
            }
            Event::Prefilled { .. } | Event::Token(_) => {}
        }
    }
    Err(ApiError::internal("an engine's stream ended without an end"))
}
