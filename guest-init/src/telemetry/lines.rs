//! Output, cut into lines of bounded length.

/// Longest line, in bytes, as on Lambda; a longer one comes in several.
const MAX_LINE: usize = 256 * 1024;

/// A stream of output whose last line may not be complete.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes output and gives out the lines that are complete, without their ends.
    pub fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(String)) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            let end = window.iter().position(|&b| b == b'\n');
            let taken = end.unwrap_or(window.len());
            self.pending.extend_from_slice(&window[..taken]);
            if end.is_some() || self.pending.len() == MAX_LINE {
                self.finish(&mut give);
            }
            bytes = &bytes[taken + usize::from(end.is_some())..];
        }
    }

    /// Gives out what is left.
    pub fn finish(&mut self, mut give: impl FnMut(String)) {
        if !self.pending.is_empty() {
            give(String::from_utf8_lossy(&self.pending).into_owned());
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_wherever_the_output_is_cut() {
        let text = b"one\ntwo\n\nthree\xff\nrest";
        for step in 1..text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for piece in text.chunks(step) {
                lines.push(piece, |line| got.push(line));
            }
            lines.finish(|line| got.push(line));
            assert_eq!(got, ["one", "two", "three\u{fffd}", "rest"]);
        }
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        lines.push(&vec![b'x'; 3 * MAX_LINE + 5], |line| got.push(line.len()));
        assert_eq!(got, [MAX_LINE; 3]);
    }
}
