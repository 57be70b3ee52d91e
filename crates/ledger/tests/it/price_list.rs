//! The body of the fuzz target `price_list` over lists made here: the shipped one, cut into pieces, with numbers, names
//! and lines exchanged. `MINTAGE_FUZZ_CASES` runs more of them (a million takes some minutes).

#[path = "../../../../fuzz/fuzz_targets/price_list_body.rs"]
mod body;

const SHIPPED: &str = include_str!("../../../../prices.toml");
const USUAL_CASES: usize = 2_000;
/// What stands instead of a value: the edges of what is allowed, and what is beyond.
const VALUES: &[&str] = &[
    "0",
    "1",
    "-1",
    "0.000001",
    "\"0.0000000000001\"",
    "9223372036854775807",
    "1e9",
    "nan",
    "\"\"",
    "\"abc\"",
    "true",
    "[]",
    "{}",
    "\"00:00\"",
    "\"24:00\"",
    "\"+25:00\"",
    "2026-11-24T00:00:00Z",
    "\"99999999999999999999999999999999999999\"",
    "\"0.5\"",
    "1_000_000",
    "'x\u{0}y'",
];

/// A generator of its own (xorshift64*, Vigna 2016): the same cases everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// One line more, less, elsewhere or with another value; or a byte that is another one.
fn mutate(lines: &mut Vec<String>, dice: &mut Dice) {
    let at = dice.below(lines.len());
    let other = dice.below(lines.len());
    match dice.below(7) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other].clone()),
        2 => lines.swap(at, other),
        3 | 4 => {
            if let Some((name, _)) = lines[at].split_once('=') {
                lines[at] = format!("{name}= {}", VALUES[dice.below(VALUES.len())]);
            }
        }
        5 => {
            if let (Some((name, _)), Some((_, value))) =
                (lines[at].split_once('='), lines[other].split_once('='))
            {
                lines[at] = format!("{name}={value}");
            }
        }
        _ => {
            let line = &lines[at];
            let cut = (0..=line.len()).filter(|i| line.is_char_boundary(*i));
            let cuts: Vec<usize> = cut.collect();
            let cut = cuts[dice.below(cuts.len())];
            let byte = char::from(dice.below(128) as u8);
            lines[at] = format!("{}{byte}{}", &line[..cut], &line[cut..]);
        }
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
}

#[test]
fn mutated_price_lists_are_read_or_refused() {
    let given = std::env::var("MINTAGE_FUZZ_CASES").ok().and_then(|count| count.parse().ok());
    let cases: usize = given.unwrap_or(USUAL_CASES);
    let whole: Vec<String> = SHIPPED
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(str::to_owned)
        .collect();
    let mut dice = Dice(1);
    let mut read = 0;
    for case in 0..cases {
        let mut lines = whole.clone();
        if case % 3 == 0 {
            // A few lines of it: small lists are mutated harder.
            let from = dice.below(lines.len());
            lines = lines.split_off(from);
            lines.truncate(20);
            lines.splice(0..0, whole.iter().take(6).cloned());
        }
        for _ in 0..dice.below(4) {
            mutate(&mut lines, &mut dice);
        }
        let text = lines.join("\n");
        read += usize::from(body::check(text.as_bytes()));
    }
    eprintln!("{read} of {cases} were lists");
    assert!(read * 20 > cases && read < cases, "{read} of {cases}: too few of one kind to tell");
}
