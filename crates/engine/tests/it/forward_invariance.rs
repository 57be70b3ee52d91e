//! A token's logits depend on its own sequence alone: not on chunks, neighbours, pages or threads. Bit for bit, on a
//! real file with quantised weights.

use mintage_engine::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, KvSize, LogitsBuffer, LogitsFor,
    WeightStorage,
};
use mintage_kernels::{KvFormat, PAGE_TOKENS};
use mintage_model::{ModelFile, TokenId};

const PAGES: usize = 24;
/// Crosses two page borders and ends inside a page.
const LEN: usize = 75;

/// The folder with real models, or nothing where the tests that need one are skipped.
fn models_folder() -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("MINTAGE_TEST_MODELS").map(Into::into);
    if folder.is_none() {
        eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with models");
    }
    folder
}

fn load(file: &str, threads: usize) -> Option<Decoder> {
    let file = ModelFile::open(&models_folder()?.join(file)).unwrap();
    let options = DecoderOptions {
        threads,
        kv_format: KvFormat::F16,
        kv_size: KvSize::Pages(PAGES),
        weights: WeightStorage::AsStored,
    };
    Some(Decoder::load(&file, &options, &mut |_| {}).unwrap())
}

/// Tokens that differ between sequences.
fn sequence(salt: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| (i * 7919 + salt * 104_729 + 17) % 40_000).collect()
}

/// One sequence of a step: its tokens from `from` to `to`, on its own pages.
struct Part<'a> {
    tokens: &'a [TokenId],
    pages: &'a [u32],
    from: usize,
    to: usize,
}

/// Runs one step and appends each part's rows to its own list.
fn step(decoder: &mut Decoder, parts: &[Part<'_>], rows: &mut [Vec<Vec<f32>>]) {
    let mut logits = LogitsBuffer::new();
    let sequences: Vec<BatchSequence<'_>> = parts
        .iter()
        .map(|part| BatchSequence {
            tokens: &part.tokens[part.from..part.to],
            first_position: part.from,
            block_table: part.pages,
            logits_for: LogitsFor::All,
        })
        .collect();
    decoder.step(&Batch { sequences: &sequences }, &mut logits).unwrap();
    let mut row = 0;
    for (part, rows) in parts.iter().zip(rows) {
        for _ in part.from..part.to {
            rows.push(logits.row(row).to_vec());
            row += 1;
        }
    }
}

/// Logits of every token of one sequence, cut into steps of `chunk` tokens.
fn chunked(
    decoder: &mut Decoder,
    tokens: &[TokenId],
    pages: &[u32],
    chunk: usize,
) -> Vec<Vec<f32>> {
    let mut rows = [Vec::new()];
    for from in (0..tokens.len()).step_by(chunk) {
        let to = tokens.len().min(from + chunk);
        step(decoder, &[Part { tokens, pages, from, to }], &mut rows);
    }
    let [rows] = rows;
    rows
}

#[track_caller]
fn check_equal(name: &str, expected: &[Vec<f32>], found: &[Vec<f32>]) {
    assert_eq!(expected.len(), found.len(), "{name}");
    for (row, (expected, found)) in expected.iter().zip(found).enumerate() {
        let differ = expected.iter().zip(found).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differ, 0, "{name}: {differ} logits of row {row} differ");
    }
    assert!(expected.iter().flatten().all(|logit| logit.is_finite()), "{name}");
}

fn check_model(file: &str) {
    let Some(mut decoder) = load(file, 2) else { return };
    let tokens = sequence(1, LEN);
    let whole = chunked(&mut decoder, &tokens, &[0, 1, 2], LEN);
    for chunk in [1, 5, PAGE_TOKENS, 40] {
        let found = chunked(&mut decoder, &tokens, &[0, 1, 2], chunk);
        check_equal(&format!("{file}, chunks of {chunk}"), &whole, &found);
    }
    let found = chunked(&mut decoder, &tokens, &[17, 3, 11], 33);
    check_equal(&format!("{file}, scattered pages"), &whole, &found);

    let others: Vec<Vec<TokenId>> = (2..8).map(|salt| sequence(salt, 10 + salt as usize)).collect();
    let tables: Vec<[u32; 2]> = (0..6).map(|i| [4 + 2 * i, 5 + 2 * i]).collect();
    let mut rows = vec![Vec::new(); 1 + others.len()];
    for (from, to) in [(0, 20), (20, 21), (21, LEN)] {
        let mut parts = vec![Part { tokens: &tokens, pages: &[0, 1, 2], from, to }];
        for (tokens, pages) in others.iter().zip(&tables) {
            // The neighbours decode one token at a time while the long one takes chunks.
            let at = [0, 1, 2][usize::from(from > 0) + usize::from(from > 20)];
            parts.push(Part { tokens, pages, from: at, to: at + 1 });
        }
        step(&mut decoder, &parts, &mut rows);
    }
    check_equal(&format!("{file}, in a batch"), &whole, &rows[0]);
    for (other, found) in others.iter().zip(&rows[1..]) {
        let alone = chunked(&mut decoder, &other[..3], &[0], 3);
        check_equal(&format!("{file}, a neighbour"), &alone, found);
    }

    for threads in [1, 3] {
        let Some(mut decoder) = load(file, threads) else { return };
        let found = chunked(&mut decoder, &tokens, &[0, 1, 2], LEN);
        check_equal(&format!("{file}, {threads} threads"), &whole, &found);
    }
}

#[test]
fn qwen_q4_k_m_is_invariant() {
    check_model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
}

#[test]
fn smollm2_q4_1_is_invariant() {
    check_model("smollm2-135m-instruct-q4_1.gguf");
}

#[test]
fn rows_nobody_asks_for_change_nothing() {
    let Some(mut decoder) = load("smollm2-135m-instruct-q4_1.gguf", 2) else { return };
    let tokens = sequence(3, LEN);
    let all = chunked(&mut decoder, &tokens, &[0, 1, 2], LEN);
    let mut logits = LogitsBuffer::new();
    for (logits_for, kept) in [
        (LogitsFor::None, 0),
        (LogitsFor::Last, 1),
        (LogitsFor::Tail(9), 9),
        (LogitsFor::Tail(500), LEN),
    ] {
        let sequence = BatchSequence {
            tokens: &tokens,
            first_position: 0,
            block_table: &[4, 5, 6],
            logits_for,
        };
        decoder.step(&Batch { sequences: &[sequence] }, &mut logits).unwrap();
        let found: Vec<Vec<f32>> = (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect();
        check_equal(&format!("{logits_for:?}"), &all[LEN - kept..], &found);
    }
}

#[test]
fn a_batch_that_breaks_its_contract_is_refused() {
    let Some(mut decoder) = load("smollm2-135m-instruct-q4_1.gguf", 1) else { return };
    let tokens = [1, 2, 3];
    let good = BatchSequence {
        tokens: &tokens,
        first_position: 0,
        block_table: &[0],
        logits_for: LogitsFor::Last,
    };
    let bad = [
        BatchSequence { tokens: &[], ..good },
        BatchSequence { tokens: &[1, u32::MAX], ..good },
        BatchSequence { first_position: PAGE_TOKENS - 2, ..good },
        BatchSequence { first_position: usize::MAX, ..good },
        BatchSequence { block_table: &[], ..good },
        BatchSequence { block_table: &[PAGES as u32], ..good },
    ];
    let mut logits = LogitsBuffer::new();
    for sequence in bad {
        let result = decoder.step(&Batch { sequences: &[good, sequence] }, &mut logits);
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with("sequence 1 of the batch"), "{sequence:?}: {message}");
    }
    decoder.step(&Batch { sequences: &[good] }, &mut logits).unwrap();
}

#[test]
fn logits_of_the_first_tokens_are_those_of_all() {
    let Some(mut decoder) = load("smollm2-135m-instruct-q4_1.gguf", 2) else { return };
    let tokens = sequence(1, LEN);
    let whole = chunked(&mut decoder, &tokens, &[0, 1, 2], LEN);
    let all = decoder.config().vocab_size;
    for (asked, given) in [(1000, 1008), (1, 16), (all - 1, all), (all + 1, all)] {
        decoder.limit_logits(asked);
        let found = chunked(&mut decoder, &tokens, &[0, 1, 2], 40);
        assert!(found.iter().all(|row| row.len() == given), "{asked}");
        let wanted: Vec<_> = whole.iter().map(|row| row[..given].to_vec()).collect();
        check_equal(&format!("the first {asked}"), &wanted, &found);
    }
}
