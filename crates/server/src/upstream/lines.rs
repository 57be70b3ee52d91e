//! Server-sent events from bytes: the data of each, line by line.
//!
//! As lenient as services need it: with or without a blank behind `data:`, with line feeds or both, comments and other
//! fields passed over. Invariant: neither a line nor the whole may be longer than its bound.

use super::Failure;

/// Bytes of one line: a whole answer of the longest kind fits in.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Bytes of an answer.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// Bytes before this are known to hold no line feed of it.
    searched: usize,
    received: usize,
}

impl Lines {
    /// Takes what came.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > MAX_ANSWER_BYTES {
            return Err(Failure::nonsense(format!(
                "an answer of more than {MAX_ANSWER_BYTES} bytes"
            )));
        }
        // Once for all lines that were taken since: moving the rest for each would take its square.
        self.pending.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// The data of the next line that has some; `None`: more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            let rest = self.pending.get(self.searched..).unwrap_or(&[]);
            let Some(at) = rest.iter().position(|&byte| byte == b'\n') else {
                self.searched = self.pending.len();
                if self.pending.len() - self.begin > MAX_LINE_BYTES {
                    let long = format!("a line of more than {MAX_LINE_BYTES} bytes");
                    return Err(Failure::nonsense(long));
                }
                return Ok(None);
            };
            let end = self.searched + at;
            let line = self.pending.get(self.begin..end).unwrap_or(&[]);
            let found = match std::str::from_utf8(line) {
                Ok(line) => data(line).map(str::to_owned),
                Err(_) => {
                    return Err(Failure::nonsense("a line that is not UTF-8".to_owned()));
                }
            };
            self.begin = end + 1;
            self.searched = self.begin;
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// What stands behind the last line feed, once all came: some services forget the last one.
    pub(super) fn last(&mut self) -> Result<Option<String>, Failure> {
        if self.pending.len() > self.begin {
            self.pending.push(b'\n');
        }
        self.next()
    }
}

/// What a line says, where it is one of data and not empty.
fn data(line: &str) -> Option<&str> {
    let data = line.trim_end_matches(['\n', '\r']).strip_prefix("data:")?;
    Some(data.trim()).filter(|data| !data.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_however_the_bytes_are_cut() {
        let text = "\u{feff}: hi\r\n\r\ndata: a\n\nevent: x\r\ndata:b\r\nid: 1\ndata:\n\ndata:  {\"ü\": 1} \n\ndata: end";
        for cut in 0..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                lines.push(piece).unwrap();
                while let Some(data) = lines.next().unwrap() {
                    found.push(data);
                }
            }
            found.extend(lines.last().unwrap());
            assert_eq!(found, ["a", "b", "{\"ü\": 1}", "end"], "{cut}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE_BYTES]).unwrap();
        assert_eq!(lines.next().unwrap(), None);
        lines.push(b"x").unwrap();
        assert!(lines.next().unwrap_err().log.contains("a line of more than"));
        let mut lines = Lines::default();
        let comment = [b":\n".repeat(1 << 19)].concat();
        let mut failed = None;
        for _ in 0..=MAX_ANSWER_BYTES / comment.len() {
            failed = lines.push(&comment).and_then(|()| lines.next()).err();
        }
        assert!(failed.unwrap().log.contains("an answer of more than"));
        let mut lines = Lines::default();
        lines.push(b"data: \xff\n").unwrap();
        assert!(lines.next().unwrap_err().log.contains("UTF-8"));
    }
}
