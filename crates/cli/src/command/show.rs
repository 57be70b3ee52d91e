//! `mintage show`: what is in a model, and what memory it will need.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use mintage_hub::{Hub, ModelRef, ResolvedModel};
use mintage_kernels::KvFormat;
use mintage_model::{EncoderFile, Footprint, GgufValue, ModelFile, Pooling};

use crate::config::Settings;
use crate::models;
use crate::output;
use crate::pull_progress::PullProgress;

/// Context for which memory is stated if none is asked for, tokens.
const DEFAULT_CONTEXT_TOKENS: u64 = 4096;
/// Characters of a metadata value that are shown.
const VALUE_CHARS: usize = 200;
/// Elements of an array that are shown.
const ARRAY_ELEMENTS: usize = 6;

const EXAMPLES: &str = "\
Examples:
  mintage show default
  mintage show ./my.gguf --context 32768            the memory that a longer context needs
  mintage show qwen2.5-coder:0.5b --tensors --metadata
  cp \"$(mintage show default --path)\" /mnt/usb/";

/// Show what is in a model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ShowArgs {
    /// A name (see `mintage list`), a file or a folder
    model: ModelRef,
    /// Only the path of the file or folder
    #[arg(long, conflicts_with_all = ["tensors", "metadata", "context", "json"])]
    path: bool,
    /// Also each tensor
    #[arg(long)]
    tensors: bool,
    /// Also each key of the file's metadata
    #[arg(long)]
    metadata: bool,
    /// State the memory needed for this many tokens
    #[arg(long, value_name = "TOKENS")]
    context: Option<u64>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(settings: &Settings, args: &ShowArgs) -> Result<()> {
    let hub = Hub::open(settings.hub_config())?;
    let Some(model) = hub.find(&args.model, &PullProgress::new())? else {
        bail!(
            "the model is not on this machine yet; `mintage pull` fetches it, `mintage list --all` shows the names"
        );
    };
    if args.path {
        return Ok(output::print(&format!("{}\n", model.path.display()))?);
    }
    if let Some(file) = models::open_encoder(&model)? {
        if args.json {
            return Ok(output::print(&format!("{}\n", encoder_json(&model, &file)))?);
        }
        return Ok(output::print(&encoder_summary(&model, &file))?);
    }
    let file = models::open(&model)?;
    if args.json {
        return Ok(output::print(&format!("{}\n", json(args, &model, &file)))?);
    }
    let mut text = summary(args, &model, &file);
    if args.metadata {
        text.push_str(&metadata(&file));
    }
    if args.tensors {
        text.push_str(&tensors(&file));
    }
    Ok(output::print(&text)?)
}

/// Bytes of the KV cache for so many tokens.
fn kv_bytes(file: &ModelFile, tokens: u64) -> u64 {
    file.config().kv_bytes_per_token(KvFormat::default().bytes()).saturating_mul(tokens)
}

fn context(args: &ShowArgs, file: &ModelFile) -> u64 {
    let promised = file.config().context_length as u64;
    args.context.unwrap_or_else(|| promised.min(DEFAULT_CONTEXT_TOKENS))
}

/// Rows that every model has.
fn common_rows(
    model: &ResolvedModel,
    family: String,
    footprint: &Footprint,
) -> Vec<(&'static str, String)> {
    let types: Vec<String> = footprint
        .by_dtype
        .iter()
        .map(|sum| format!("{:?} {}", sum.dtype, output::bytes(sum.bytes)))
        .collect();
    let mut rows = vec![("name", model.name.to_string())];
    if let Some(manifest) = &model.manifest {
        rows.push(("from", plain(&manifest.origin, VALUE_CHARS)));
        rows.push((
            "licence",
            plain(manifest.licence.as_deref().unwrap_or("unknown"), VALUE_CHARS),
        ));
    }
    rows.push(("path", model.path.display().to_string()));
    rows.push(("family", family));
    rows.push(("parameters", output::parameters(footprint.parameters)));
    let weights = output::bytes(footprint.weight_bytes);
    rows.push(("weights", format!("{weights} ({})", types.join(", "))));
    rows
}

fn lines(rows: &[(&'static str, String)]) -> String {
    rows.iter().fold(String::new(), |text, (name, value)| format!("{text}{name:16} {value}\n"))
}

fn encoder_summary(model: &ResolvedModel, file: &EncoderFile) -> String {
    let config = file.config();
    let mut rows = common_rows(model, "bert".to_owned(), &file.footprint());
    let pooling = match config.pooling {
        Pooling::Mean => "the mean of the tokens' states",
        Pooling::First => "the first token's state",
        Pooling::Last => "the last token's state",
    };
    rows.push(("embeddings", format!("{} numbers, {pooling}", config.hidden_size)));
    rows.push(("longest text", format!("{} tokens with its marks", config.max_tokens)));
    rows.push(("layers", format!("{} of width {}", config.num_layers, config.hidden_size)));
    rows.push(("attention heads", config.num_heads.to_string()));
    rows.push(("feed-forward", format!("width {}", config.intermediate_size)));
    rows.push(("vocabulary", format!("{} tokens", config.vocab_size)));
    lines(&rows)
}

fn encoder_json(model: &ResolvedModel, file: &EncoderFile) -> serde_json::Value {
    let (config, footprint) = (file.config(), file.footprint());
    serde_json::json!({
        "name": model.name,
        "path": model.path,
        "origin": model.manifest.as_ref().map(|manifest| &manifest.origin),
        "licence": model.manifest.as_ref().and_then(|manifest| manifest.licence.as_ref()),
        "family": "bert",
        "parameters": footprint.parameters,
        "weight_bytes": footprint.weight_bytes,
        "context_length": config.max_tokens,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
    })
}

fn summary(args: &ShowArgs, model: &ResolvedModel, file: &ModelFile) -> String {
    let (config, footprint) = (file.config(), file.footprint());
    let tokens = context(args, file);
    let kv = kv_bytes(file, tokens);
    let weights = footprint.weight_bytes;
    let mut rows = common_rows(model, format!("{:?}", config.family).to_lowercase(), &footprint);
    rows.push(("context", format!("{} tokens", config.context_length)));
    rows.push(("layers", format!("{} of width {}", config.num_layers, config.hidden_size)));
    rows.push((
        "attention heads",
        format!(
            "{} for queries, {} for keys and values, of width {}",
            config.num_heads, config.num_kv_heads, config.head_dim
        ),
    ));
    rows.push(("feed-forward", format!("width {}", config.intermediate_size)));
    rows.push(("vocabulary", format!("{} tokens", config.vocab_size)));
    rows.push((
        "memory needed",
        format!(
            "about {} for {tokens} tokens: weights {}, KV cache {}",
            output::bytes(weights.saturating_add(kv)),
            output::bytes(weights),
            output::bytes(kv)
        ),
    ));
    lines(&rows)
}

fn json(args: &ShowArgs, model: &ResolvedModel, file: &ModelFile) -> serde_json::Value {
    let (config, footprint) = (file.config(), file.footprint());
    let tokens = context(args, file);
    serde_json::json!({
        "name": model.name,
        "path": model.path,
        "origin": model.manifest.as_ref().map(|manifest| &manifest.origin),
        "licence": model.manifest.as_ref().and_then(|manifest| manifest.licence.as_ref()),
        "family": format!("{:?}", config.family).to_lowercase(),
        "parameters": footprint.parameters,
        "weight_bytes": footprint.weight_bytes,
        "context_length": config.context_length,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "memory": { "tokens": tokens, "kv_bytes": kv_bytes(file, tokens) },
    })
}

fn metadata(file: &ModelFile) -> String {
    let mut text = "\nmetadata\n".to_owned();
    match (file.metadata(), file.config_json()) {
        (Some(metadata), _) => {
            for (key, value) in metadata.iter() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  {} = {}", plain(key, VALUE_CHARS), value_text(&value));
            }
        }
        (None, Some(config)) => {
            for (key, value) in config.as_object().into_iter().flatten() {
                let value = plain(&value.to_string(), VALUE_CHARS);
                let _ = writeln!(text, "  {} = {value}", plain(key, VALUE_CHARS));
            }
        }
        (None, None) => {}
    }
    text
}

fn value_text(value: &GgufValue<'_>) -> String {
    if let Some(array) = value.as_array() {
        let shown: Vec<String> =
            array.iter().take(ARRAY_ELEMENTS).map(|element| value_text(&element)).collect();
        let more = if array.len() > shown.len() { ", …" } else { "" };
        return format!("[{}{more}] ({} elements)", shown.join(", "), array.len());
    }
    match value.as_str() {
        Some(text) => format!("\"{}\"", plain(text, VALUE_CHARS)),
        None => value.as_bool().map(|b| b.to_string()).unwrap_or_else(|| number_text(value)),
    }
}

fn number_text(value: &GgufValue<'_>) -> String {
    let float = || value.as_f32().map(|x| x.to_string());
    value
        .as_unsigned()
        .map(|n| n.to_string())
        .or_else(float)
        // A negative whole number: the variant's own form, without its name.
        .unwrap_or_else(|| {
            let text = format!("{value:?}");
            text.trim_start_matches(|c| c != '(').trim_matches(['(', ')']).to_owned()
        })
}

fn tensors(file: &ModelFile) -> String {
    let rows: Vec<Vec<String>> = file
        .tensors()
        .map(|tensor| {
            let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            let dtype = format!("{:?}", tensor.dtype);
            let bytes = output::bytes(tensor.data.len() as u64);
            vec![plain(tensor.name, VALUE_CHARS), shape.join(" × "), dtype, bytes]
        })
        .collect();
    format!("\n{}", output::table(&["TENSOR", "SHAPE", "TYPE", "SIZE"], &rows))
}

/// Text of a file, shortened and without control characters: a file must not write to the terminal.
fn plain(text: &str, chars: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(chars)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect();
    if text.chars().nth(chars).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_file_cannot_drive_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc", 20), "a\\u{1b}[2Jb\\nc");
        assert_eq!(plain("猫と犬", 2), "猫と…");
    }

    #[test]
    fn numbers_show_bare() {
        assert_eq!(value_text(&GgufValue::I32(-5)), "-5");
        assert_eq!(value_text(&GgufValue::U8(5)), "5");
        assert_eq!(value_text(&GgufValue::F32(0.5)), "0.5");
        assert_eq!(value_text(&GgufValue::Bool(true)), "true");
    }
}
