//! GBNF, the notation of llama.cpp's grammars, to Lark.
//!
//! A rule that is not recursive, directly or through others, becomes one terminal, which is a regular expression; the
//! others stay rules. Invariant: the language is the same, except that where a terminal may be read in two ways the
//! longer one counts: it may allow less, never more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Rules of a grammar.
const MAX_RULES: usize = 2_000;
/// Groups in one another.
const MAX_NESTING: usize = 64;
/// Repetitions that are written as numbers.
const MAX_REPEATS: u32 = 10_000;

/// A piece of a rule.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Literal(String),
    /// A class as a regular expression.
    Class(String),
    Rule(String),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// The same grammar in Lark; the error says what is wrong, and in which line.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let rules = Parser { rest: text, line: 1, depth: 0 }.rules()?;
    if !rules.contains_key("root") {
        return Err("it has no rule `root`".to_owned());
    }
    for node in rules.values() {
        if let Some(name) = references(node).iter().find(|name| !rules.contains_key(**name)) {
            return Err(format!("the rule `{name}` is not defined"));
        }
    }
    let recursive = recursive(&rules);
    let mut names = BTreeMap::new();
    for (index, name) in rules.keys().enumerate() {
        let lark = match (name.as_str(), recursive.contains(name.as_str())) {
            ("root", true) => "start".to_owned(),
            (_, true) => format!("r{index}"),
            (_, false) => format!("T{index}"),
        };
        names.insert(name.as_str(), lark);
    }
    let mut out = String::new();
    if !recursive.contains("root") {
        let root = names.get("root").map_or("", String::as_str);
        let _ = writeln!(out, "start: {root}");
    }
    for (name, node) in &rules {
        let lark = names.get(name.as_str()).map_or("", String::as_str);
        let _ = write!(out, "{lark}: ");
        write_node(node, &names, &mut out);
        out.push('\n');
    }
    Ok(out)
}

/// A text as a Lark literal.
pub(super) fn lark_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn write_node(node: &Node, names: &BTreeMap<&str, String>, out: &mut String) {
    match node {
        Node::Literal(text) => out.push_str(&lark_string(text)),
        Node::Class(class) => {
            let _ = write!(out, "/{class}/");
        }
        Node::Rule(name) => out.push_str(names.get(name.as_str()).map_or("", String::as_str)),
        Node::Sequence(parts) if parts.is_empty() => out.push_str("\"\""),
        Node::Sequence(parts) => {
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                write_node(part, names, out);
            }
        }
        Node::Choice(options) => {
            out.push('(');
            for (index, option) in options.iter().enumerate() {
                if index > 0 {
                    out.push_str(" | ");
                }
                write_node(option, names, out);
            }
            out.push(')');
        }
        Node::Repeat(inner, least, most) => {
            out.push('(');
            write_node(inner, names, out);
            let _ = match (least, most) {
                (0, None) => write!(out, ")*"),
                (1, None) => write!(out, ")+"),
                (0, Some(1)) => write!(out, ")?"),
                (least, None) => write!(out, "){{{least},}}"),
                (least, Some(most)) => write!(out, "){{{least},{most}}}"),
            };
        }
    }
}

fn references(node: &Node) -> Vec<&str> {
    match node {
        Node::Literal(_) | Node::Class(_) => Vec::new(),
        Node::Rule(name) => vec![name],
        Node::Sequence(parts) | Node::Choice(parts) => parts.iter().flat_map(references).collect(),
        Node::Repeat(inner, ..) => references(inner),
    }
}

/// Rules that reach themselves, or a rule that does. What is left over when, again and again, a rule is taken away that
/// refers only to rules taken away before.
fn recursive(rules: &BTreeMap<String, Node>) -> BTreeSet<&str> {
    let mut left: BTreeMap<&str, BTreeSet<&str>> = rules
        .iter()
        .map(|(name, node)| (name.as_str(), references(node).into_iter().collect()))
        .collect();
    loop {
        let done: Vec<&str> = left
            .iter()
            .filter(|(_, refers)| refers.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        if done.is_empty() {
            return left.into_keys().collect();
        }
        for name in done {
            left.remove(name);
        }
    }
}

struct Parser<'t> {
    rest: &'t str,
    line: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn rules(mut self) -> Result<BTreeMap<String, Node>, String> {
        let mut rules = BTreeMap::new();
        self.skip(true);
        while !self.rest.is_empty() {
            let name = self.name().ok_or_else(|| self.wrong("a rule's name"))?;
            self.skip(true);
            if !self.take("::=") {
                return Err(self.wrong("`::=`"));
            }
            self.skip(true);
            let node = self.choice()?;
            if rules.insert(name.to_owned(), node).is_some() {
                return Err(format!("line {}: the rule `{name}` is defined twice", self.line));
            }
            if rules.len() > MAX_RULES {
                return Err(format!("it has more than {MAX_RULES} rules"));
            }
            self.skip(true);
        }
        Ok(rules)
    }

    fn wrong(&self, expected: &str) -> String {
        let found: String = self.rest.chars().take(12).collect();
        match found.is_empty() {
            true => format!("line {}: {expected} is expected, not the end", self.line),
            false => format!("line {}: {expected} is expected, not `{found}`", self.line),
        }
    }

    fn take(&mut self, word: &str) -> bool {
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn next_char(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = self.rest.get(next.len_utf8()..)?;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    /// Passes over blanks and comments, and where `lines` over ends of lines.
    fn skip(&mut self, lines: bool) {
        while let Some(next) = self.rest.chars().next() {
            match next {
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = self.rest.get(end..).unwrap_or("");
                }
                '\n' | '\r' if !lines => return,
                c if c.is_ascii_whitespace() => {
                    self.next_char();
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<&'t str> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let name = self.rest.get(..end).filter(|name| !name.is_empty())?;
        self.rest = self.rest.get(end..)?;
        Some(name)
    }

    fn choice(&mut self) -> Result<Node, String> {
        let mut options = vec![self.sequence()?];
        loop {
            // An alternative may stand in the next line; a rule may as well.
            let (rest, line) = (self.rest, self.line);
            self.skip(true);
            if !self.take("|") {
                if self.depth == 0 {
                    (self.rest, self.line) = (rest, line);
                }
                break;
            }
            self.skip(true);
            options.push(self.sequence()?);
        }
        Ok(match (options.len(), options.pop()) {
            (1, Some(only)) => only,
            (_, last) => {
                options.extend(last);
                Node::Choice(options)
            }
        })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut parts = Vec::new();
        loop {
            self.skip(self.depth > 0);
            let Some(next) = self.rest.chars().next() else { break };
            let part = match next {
                '|' | ')' | '\n' | '\r' => break,
                '"' => self.literal()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '.' => {
                    self.next_char();
                    Node::Class(r"(?s:.)".to_owned())
                }
                _ => Node::Rule(
                    self.name().ok_or_else(|| self.wrong("a rule, a text or a class"))?.to_owned(),
                ),
            };
            parts.push(self.repeats(part)?);
        }
        Ok(Node::Sequence(parts))
    }

    fn group(&mut self) -> Result<Node, String> {
        self.next_char();
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(format!("line {}: groups nest deeper than {MAX_NESTING}", self.line));
        }
        let inner = self.choice()?;
        self.skip(true);
        if !self.take(")") {
            return Err(self.wrong("`)`"));
        }
        self.depth -= 1;
        // Kept as one piece.
        Ok(Node::Choice(vec![inner]))
    }

    fn repeats(&mut self, part: Node) -> Result<Node, String> {
        let mut part = part;
        loop {
            let (least, most) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let bounds = self.bounds()?;
                    part = Node::Repeat(Box::new(part), bounds.0, bounds.1);
                    continue;
                }
                _ => return Ok(part),
            };
            self.next_char();
            part = Node::Repeat(Box::new(part), least, most);
        }
    }

    /// `{3}`, `{3,}`, `{3,5}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), String> {
        self.next_char();
        let inner = self.rest.split('}').next().unwrap_or("").to_owned();
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n <= MAX_REPEATS);
        let bounds = match inner.split_once(',') {
            None => number(&inner).map(|n| (n, Some(n))),
            Some((least, most)) if most.trim().is_empty() => number(least).map(|n| (n, None)),
            Some((least, most)) => number(least).zip(number(most)).map(|(a, b)| (a, Some(b))),
        };
        let valid = bounds.filter(|(least, most)| most.is_none_or(|most| *least <= most));
        let bounds = valid.ok_or_else(|| self.wrong("numbers of repetitions up to 10000"))?;
        self.rest = self.rest.get(inner.len() + 1..).unwrap_or("");
        Ok(bounds)
    }

    fn literal(&mut self) -> Result<Node, String> {
        self.next_char();
        let mut text = String::new();
        loop {
            match self.next_char() {
                None => return Err(self.wrong("the end of a text, `\"`,")),
                Some('"') => return Ok(Node::Literal(text)),
                Some('\\') => text.push(self.escaped()?),
                Some(c) => text.push(c),
            }
        }
    }

    /// A class as a regular expression.
    fn class(&mut self) -> Result<Node, String> {
        self.next_char();
        let mut class = String::from("[");
        if self.take("^") {
            class.push('^');
        }
        let mut first = true;
        loop {
            let next = self.next_char();
            let character = match next {
                None => return Err(self.wrong("the end of a class, `]`,")),
                Some(']') if first => return Err(format!("line {}: an empty class", self.line)),
                Some(']') => break,
                // Between two characters it makes a range.
                Some('-') if !first && !self.rest.starts_with(']') => {
                    class.push('-');
                    continue;
                }
                Some('\\') => self.escaped()?,
                Some(c) => c,
            };
            first = false;
            let _ = write!(class, "\\u{{{:x}}}", character as u32);
        }
        class.push(']');
        Ok(Node::Class(class))
    }

    fn escaped(&mut self) -> Result<char, String> {
        let digits = match self.next_char() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c @ ('"' | '\\' | '[' | ']' | '-' | '/' | '^')) => return Ok(c),
            _ => return Err(self.wrong("an escape such as `\\n` or `\\x41`")),
        };
        let code = self.rest.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let character = code.and_then(char::from_u32);
        let character = character.ok_or_else(|| self.wrong("the digits of a character"))?;
        self.rest = self.rest.get(digits..).unwrap_or("");
        Ok(character)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_terminals_unless_they_are_recursive() {
        let text = "root ::= value # comment\nvalue ::= \"[\" (value (\",\" value)*)? \"]\" | number\n\
                    number ::= [0-9]+ (\n  \".\" [0-9]{1,3}\n)?\n";
        insta::assert_snapshot!(to_lark(text).unwrap(), @r#"
        T0: (/[\u{30}-\u{39}]/)+ (("." (/[\u{30}-\u{39}]/){1,3}))?
        start: r2
        r2: ("[" ((r2 (("," r2))*))? "]" | T0)
        "#);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, wanted) in [
            ("root ::= a", "the rule `a` is not defined"),
            ("a ::= \"x\"", "it has no rule `root`"),
            ("root ::= \"x", "line 1: the end of a text, `\"`, is expected, not the end"),
            ("root ::= \"x\"\nroot ::= \"y\"", "line 2: the rule `root` is defined twice"),
            ("root ::= \"x\"\n= 3", "line 2: a rule's name is expected, not `= 3`"),
            ("root ::= (\"x\"", "line 1: `)` is expected, not the end"),
            ("root ::= [a", "line 1: the end of a class, `]`, is expected, not the end"),
        ] {
            assert_eq!(to_lark(text).unwrap_err(), wanted, "{text}");
        }
    }
}
