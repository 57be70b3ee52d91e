//! Answers that follow a grammar, on a real file with its real vocabulary: what they say does not depend on neighbours, on
//! guesses, on losing their pages, or on whether forced tokens were sampled; and it is what the grammar asks for.

use std::sync::Arc;

use mintage_engine::{MAX_DRAFTS, SchedulerConfig};
use mintage_model::Engine;
use mintage_model::{
    Event, FinishReason, GenerateRequest, Grammar, GrammarCompiler, GrammarLimits, GrammarSpec,
    ModelFile, SamplingParams, SpecialTokens, TextModel, TokenId,
};
use serde_json::{Value as Json, json};

use crate::serving::{SMALL, assert_nothing_left, engine, read};

fn text() -> Option<Arc<TextModel>> {
    let folder = std::env::var_os("MINTAGE_TEST_MODELS")?;
    let file = ModelFile::open(&std::path::Path::new(&folder).join(SMALL)).unwrap();
    Some(Arc::new(TextModel::from_model_file(&file).unwrap()))
}

/// Records of one kind, where most of the text is forced.
fn schema() -> Json {
    json!({
        "type": "array", "minItems": 2, "maxItems": 2,
        "items": {
            "type": "object", "additionalProperties": false,
            "required": ["measurement_name", "measured_value", "is_within_tolerance"],
            "properties": {
                "measurement_name": { "type": "string", "maxLength": 12 },
                "measured_value": { "type": "integer", "minimum": 0, "maximum": 99 },
                "is_within_tolerance": { "type": "boolean" }
            }
        }
    })
}

fn specs() -> Vec<GrammarSpec> {
    vec![
        GrammarSpec::JsonSchema(schema()),
        GrammarSpec::Regex("[a-z]{3,9}(-[0-9]{2}){1,4} is the identifier of the part".to_owned()),
        GrammarSpec::Choice(vec!["the first answer".to_owned(), "the second answer".to_owned()]),
    ]
}

fn requests(text: &TextModel, grammars: &[Arc<dyn Grammar>]) -> Vec<GenerateRequest> {
    let request = |index: usize| {
        let prompt = format!("List of the parts, number {index}, as a table of records: ");
        let temperature = [0.0, 1.0][index % 2];
        GenerateRequest {
            prompt: text.encode_completion(&prompt, SpecialTokens::AsText).into(),
            max_new_tokens: 90,
            sampling: SamplingParams { temperature, seed: 3, ..SamplingParams::default() },
            stop_token_ids: Arc::clone(text.end_of_turn_ids()),
            grammar: Some(Arc::clone(&grammars[index % grammars.len()])),
            ..GenerateRequest::default()
        }
    };
    (0..2 * grammars.len()).map(request).collect()
}

fn ids(events: &[Event]) -> Vec<TokenId> {
    let id = |event: &Event| match event {
        Event::Token(token) => Some(token.id),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

#[test]
fn company_guesses_and_forcing_change_nothing() {
    let Some(text) = text() else {
        return eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with models");
    };
    let compiler = GrammarCompiler::new(Arc::clone(&text), GrammarLimits::default());
    let grammars: Vec<_> = specs().iter().map(|spec| compiler.compile(spec).unwrap()).collect();
    let requests = requests(&text, &grammars);
    let whole = SchedulerConfig { max_drafts: 0, ..SchedulerConfig::default() };
    let Some(quiet) = engine(SMALL, 64, 2, whole) else { return };
    // With log-probabilities nothing is forced.
    let alone: Vec<Vec<TokenId>> = requests
        .iter()
        .map(|request| {
            let request = GenerateRequest { logprobs: Some(0), ..request.clone() };
            let (events, finish) = read(quiet.submit(request).unwrap());
            assert!(matches!(finish.reason, FinishReason::Stop(_)), "{:?}", finish.reason);
            ids(&events)
        })
        .collect();
    assert_eq!(quiet.load().forced_tokens, 0);
    drop(quiet);
    let crowded = SchedulerConfig {
        max_running: 4,
        max_step_tokens: 24,
        max_drafts: MAX_DRAFTS,
        ..SchedulerConfig::default()
    };
    let Some(engine) = engine(SMALL, 12, 2, crowded) else { return };
    let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for (index, (stream, alone)) in streams.into_iter().zip(&alone).enumerate() {
        let (events, finish) = read(stream);
        let said = ids(&events);
        assert_eq!(&said, alone, "request {index}");
        assert_eq!(finish.reason, FinishReason::Stop(said[said.len() - 1]));
        check_text(index, &text.tokenizer().decode(&said[..said.len() - 1], false));
    }
    let load = engine.load();
    assert!(load.forced_tokens > 30, "too easy: {load:?}");
    assert_nothing_left(&engine);
}

fn check_text(index: usize, said: &str) {
    match index % 3 {
        0 => {
            let value: Json = serde_json::from_str(said).unwrap();
            assert!(jsonschema::is_valid(&schema(), &value), "{said}");
        }
        1 => assert!(said.ends_with(" is the identifier of the part"), "{said}"),
        _ => assert!(["the first answer", "the second answer"].contains(&said), "{said}"),
    }
}
