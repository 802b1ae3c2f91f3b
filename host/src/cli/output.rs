//! Where commands print, and how errors look.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this module is the output handle")]

use std::io::{self, IsTerminal, Write};

use super::hint::Hint;

/// Standard output of a command. A closed pipe (`| head`) ends the process quietly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output(());

impl Output {
    /// Whether a person is reading.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Prints text as it is.
    pub fn text(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Passes bytes on, whatever they are.
    pub fn bytes(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// Prints a line.
    pub fn line(&self, line: impl AsRef<str>) {
        self.text(&format!("{}\n", line.as_ref()));
    }

    /// Tells the person something that is no result: progress, a note, a warning.
    pub fn note(&self, line: impl AsRef<str>) {
        eprintln!("{}", line.as_ref());
    }

    /// Prints aligned columns, three blanks apart, as kubectl does.
    pub fn columns(&self, rows: &[Vec<String>]) {
        self.text(&aligned(rows));
    }
}

/// Rows as aligned text: each column as wide as its widest cell plus three blanks; the last is not padded.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if i + 1 < row.len() {
                text.extend(std::iter::repeat_n(' ', widths[i] + 3 - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// Prints an error with its chain and hint to standard error.
pub(super) fn report(error: &anyhow::Error) {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = worded(cause);
        // A link that says what one above it has said adds nothing.
        if said.iter().any(|before| before.contains(&text)) {
            continue;
        }
        // The server's refusals say themselves that they are errors.
        let lead = match said.is_empty() {
            true if text.starts_with("Error from server") => "",
            true => "error: ",
            false => "  caused by: ",
        };
        eprintln!("{lead}{text}");
        said.push(text);
    }
    if let Some(hint) = error.chain().find_map(|e| e.downcast_ref::<Hint>()) {
        eprintln!("hint: {}", hint.text());
    }
}

/// An error's own words; of the API's refusals their message.
fn worded(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let rows = [vec!["NAME".to_string(), "AGE".into()], vec!["a-long-name".into(), "1s".into()]];
        assert_eq!(aligned(&rows), "NAME          AGE\na-long-name   1s\n");
    }
}
