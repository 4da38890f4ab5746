//! Bytes from somebody else, cut into log lines of bounded length.

/// Longest line that is shown whole, in bytes.
const MAX_LINE: usize = 4096;

/// Cuts a stream of bytes into lines. A longer line than `MAX_LINE` is cut in
/// several; bytes that are not UTF-8 and control characters are replaced.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and shows every line that is complete.
    pub fn push(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.flush(&mut show);
                continue;
            }
            self.pending.push(byte);
            if self.pending.len() >= MAX_LINE {
                self.flush(&mut show);
            }
        }
    }

    /// Shows what is left without a line end.
    pub fn finish(&mut self, mut show: impl FnMut(&str)) {
        if !self.pending.is_empty() {
            self.flush(&mut show);
        }
    }

    fn flush(&mut self, show: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.pending);
        let harmless = |c: char| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        };
        let line: String = text.trim_end_matches('\r').chars().map(harmless).collect();
        if !line.is_empty() {
            show(&line);
        }
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, |line| seen.push(line.to_owned()));
        }
        lines.finish(|line| seen.push(line.to_owned()));
        seen
    }

    #[test]
    fn lines_are_put_together_across_reads() {
        assert_eq!(
            lines(&[b"one\ntw", b"o\r\n", b"three"]),
            ["one", "two", "three"]
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let seen = lines(&[&[b'x'; MAX_LINE + 1]]);
        assert_eq!(
            seen.iter().map(String::len).collect::<Vec<_>>(),
            [MAX_LINE, 1]
        );
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(lines(&[b"\x1b[31mred\xff"]), ["\u{fffd}[31mred\u{fffd}"]);
    }
}
