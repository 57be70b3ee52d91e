//! `mintage tokenize`: text → tokens as a model sees them, and back.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use mintage_hub::ModelRef;
use mintage_model::{SpecialTokens, TokenId, Tokenizer};

use crate::config::Settings;
use crate::load;
use crate::models::{self, DEFAULT_MODEL};
use crate::output;

/// Bytes of the longest text.
const TEXT_BYTES_MAX: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  mintage tokenize 'Hello, 世界'
  mintage tokenize --ids < book.txt | wc -w
  mintage tokenize --decode 9707,11,220,99489";

/// Show a text as a model's tokens
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TokenizeArgs {
    /// The text; standard input where it is left out
    text: Option<String>,
    /// Read the text from this file
    #[arg(long, conflicts_with = "text", value_name = "FILE")]
    file: Option<PathBuf>,
    /// A name, a file or a folder
    #[arg(long, default_value = DEFAULT_MODEL, value_name = "NAME|FILE")]
    model: ModelRef,
    /// Only the ids, separated by blanks
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// For programs: a JSON array of ids
    #[arg(long)]
    json: bool,
    /// Read control tokens such as <|im_end|> as what they stand for
    #[arg(long)]
    special: bool,
    /// The other way round: ids → text
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["text", "file", "ids", "json", "special"])]
    decode: Vec<TokenId>,
}

pub(crate) fn run(settings: &Settings, args: &TokenizeArgs) -> Result<()> {
    let model = models::resolve(settings, &args.model)?;
    let text_model = load::text(&model)?;
    let tokenizer = text_model.tokenizer();
    if !args.decode.is_empty() {
        let size = tokenizer.vocab_size();
        if let Some(id) = args.decode.iter().find(|&&id| id as usize >= size) {
            bail!("{id} is no token: the vocabulary has {size}");
        }
        return Ok(output::print(&format!("{}\n", tokenizer.decode(&args.decode, false)))?);
    }
    let text = read(args)?;
    let special = if args.special { SpecialTokens::Allow } else { SpecialTokens::AsText };
    let ids = tokenizer.encode(&text, special);
    if args.json {
        return Ok(output::print(&format!("{}\n", serde_json::json!(ids)))?);
    }
    if args.ids {
        let ids: Vec<String> = ids.iter().map(TokenId::to_string).collect();
        return Ok(output::print(&format!("{}\n", ids.join(" ")))?);
    }
    Ok(output::print(&listing(tokenizer, &ids, &text))?)
}

fn listing(tokenizer: &Tokenizer, ids: &[TokenId], text: &str) -> String {
    let mut lines: String = ids
        .iter()
        .map(|&id| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            // A token may be a piece of a character: then its bytes are shown.
            let shown = std::str::from_utf8(bytes)
                .map_or_else(|_| bytes.escape_ascii().to_string(), |text| format!("{text:?}"));
            format!("{id:>8}  {shown}\n")
        })
        .collect();
    let (tokens, characters) = (ids.len(), text.chars().count());
    lines.push_str(&format!("{tokens} tokens, {characters} characters\n"));
    lines
}

fn read(args: &TokenizeArgs) -> Result<String> {
    if let Some(text) = &args.text {
        return Ok(text.clone());
    }
    let mut text = String::new();
    let (what, read) = match &args.file {
        Some(path) => {
            let file = std::fs::File::open(path);
            let file = file.with_context(|| format!("{} cannot be read", path.display()))?;
            (path.display().to_string(), file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text))
        }
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                eprintln!("reading from the terminal; Ctrl-D ends the text");
            }
            let read = stdin.lock().take(TEXT_BYTES_MAX + 1).read_to_string(&mut text);
            ("standard input".to_owned(), read)
        }
    };
    read.with_context(|| format!("{what} is not a readable UTF-8 text"))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        bail!("{what} has more than {TEXT_BYTES_MAX} bytes");
    }
    Ok(text)
}
