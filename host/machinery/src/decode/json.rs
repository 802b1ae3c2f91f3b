//! Reads JSON with the errors Go's `encoding/json` gives, keeping repeated keys.

use super::doc::{Doc, MAX_DEPTH};

/// Parses one JSON text.
///
/// # Errors
/// Go's sentence about the first character that does not fit.
pub(crate) fn parse(bytes: &[u8]) -> Result<Doc, String> {
    let mut parser = Parser { bytes, at: 0 };
    let doc = parser.value(0)?;
    parser.space();
    match parser.peek() {
        None => Ok(doc),
        Some(c) => Err(bad(c, "after top-level value")),
    }
}

struct Parser<'b> {
    bytes: &'b [u8],
    at: usize,
}

fn end() -> String {
    "unexpected end of JSON input".into()
}

fn bad(c: u8, context: &str) -> String {
    let shown = match c {
        b'\'' => r"\'".into(),
        b'"' => "\"".into(),
        c => {
            let quoted = crate::field::quoted(&char::from(c).to_string());
            quoted[1..quoted.len() - 1].to_string()
        }
    };
    format!("invalid character '{shown}' {context}")
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, String> {
        let c = self.peek().ok_or_else(end)?;
        self.at += 1;
        Ok(c)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Doc, String> {
        self.space();
        match self.peek().ok_or_else(end)? {
            c @ (b'{' | b'[') if depth >= MAX_DEPTH => {
                self.skip_nested()?;
                Ok(Doc::TooDeep(c == b'['))
            }
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => {
                self.at += 1;
                self.string().map(Doc::String)
            }
            b't' => self.literal("true", Doc::Bool(true)),
            b'f' => self.literal("false", Doc::Bool(false)),
            b'n' => self.literal("null", Doc::Null),
            b'-' | b'0'..=b'9' => self.number().map(Doc::Number),
            c => Err(bad(c, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Doc, String> {
        self.at += 1;
        let mut entries = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Doc::Object(entries));
        }
        loop {
            let key = self.key()?;
            entries.push((key, self.value(depth + 1)?));
            self.space();
            match self.next()? {
                b',' => (),
                b'}' => return Ok(Doc::Object(entries)),
                c => return Err(bad(c, "after object key:value pair")),
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<String, String> {
        self.space();
        match self.next()? {
            b'"' => (),
            c => return Err(bad(c, "looking for beginning of object key string")),
        }
        let key = self.string()?;
        self.space();
        match self.next()? {
            b':' => Ok(key),
            c => Err(bad(c, "after object key")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Doc, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Doc::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            match self.next()? {
                b',' => (),
                b']' => return Ok(Doc::Array(items)),
                c => return Err(bad(c, "after array element")),
            }
        }
    }

    /// Checks a list or map of any depth without recursion.
    fn skip_nested(&mut self) -> Result<(), String> {
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek().ok_or_else(end)? {
                c @ (b'{' | b'[') => {
                    self.at += 1;
                    self.space();
                    let close = if c == b'{' { b'}' } else { b']' };
                    if self.peek() != Some(close) {
                        open.push(close);
                        if close == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                    self.at += 1;
                }
                // A scalar has no depth of its own.
                _ => drop(self.value(0)?),
            }
            if !self.close_nested(&mut open)? {
                return Ok(());
            }
        }
    }

    /// After a nested value: goes on to the next one (`true`), or to the end of the outermost.
    fn close_nested(&mut self, open: &mut Vec<u8>) -> Result<bool, String> {
        while let Some(close) = open.last().copied() {
            self.space();
            match self.next()? {
                b',' => {
                    if close == b'}' {
                        self.key()?;
                    }
                    return Ok(true);
                }
                c if c == close => drop(open.pop()),
                c if close == b'}' => return Err(bad(c, "after object key:value pair")),
                c => return Err(bad(c, "after array element")),
            }
        }
        Ok(false)
    }

    fn literal(&mut self, word: &str, doc: Doc) -> Result<Doc, String> {
        self.at += 1;
        for expected in word.bytes().skip(1) {
            match self.next()? {
                c if c == expected => (),
                c => {
                    return Err(bad(c, &format!("in literal {word} (expecting '{}')", char::from(expected))));
                }
            }
        }
        Ok(doc)
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<Box<str>, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.next()? {
            b'0' => (),
            b'1'..=b'9' => self.digits(),
            c => return Err(bad(c, "in numeric literal")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            match self.next()? {
                c if c.is_ascii_digit() => self.digits(),
                c => return Err(bad(c, "after decimal point in numeric literal")),
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            match self.next()? {
                c if c.is_ascii_digit() => self.digits(),
                c => return Err(bad(c, "in exponent of numeric literal")),
            }
        }
        Ok(String::from_utf8_lossy(&self.bytes[start..self.at]).into())
    }

    /// After the opening quote.
    fn string(&mut self) -> Result<String, String> {
        let mut out: Vec<u8> = Vec::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|c| c >= 0x20 && c != b'"' && c != b'\\') {
                self.at += 1;
            }
            out.extend_from_slice(&self.bytes[start..self.at]);
            match self.next()? {
                b'"' => {
                    // Go replaces what is no UTF-8.
                    return Ok(String::from_utf8(out)
                        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()));
                }
                b'\\' => self.escape(&mut out)?,
                c => return Err(bad(c, "in string literal")),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let c = match self.next()? {
            c @ (b'"' | b'\\' | b'/') => c,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let c = self.unicode()?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => return Err(bad(c, "in string escape code")),
        };
        out.push(c);
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let c = self.next()?;
            let digit =
                char::from(c).to_digit(16).ok_or_else(|| bad(c, "in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
        }
        Ok(code)
    }

    /// A `\u` escape, with the second half of a surrogate pair; a lone half becomes U+FFFD.
    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex4()?;
        if !(0xd800..0xdc00).contains(&first) || !self.bytes[self.at..].starts_with(b"\\u") {
            return Ok(char::from_u32(first).unwrap_or('\u{fffd}'));
        }
        let back = self.at;
        self.at += 2;
        let second = self.hex4()?;
        if (0xdc00..0xe000).contains(&second) {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
        }
        self.at = back;
        Ok('\u{fffd}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_in_gos_words() {
        for (text, error) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("[1,", "unexpected end of JSON input"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("1 2", "invalid character '2' after top-level value"),
            ("\"\u{1}\"", r"invalid character '\x01' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u12g""#, r"invalid character 'g' in \u hexadecimal character escape"),
            ("tru3", "invalid character '3' in literal true (expecting 'e')"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("'a'", r"invalid character '\'' looking for beginning of value"),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(error.into()), "{text}");
        }
    }

    #[test]
    fn text_as_go_reads_it() {
        for (text, value) in
            [(r#""\ud800""#, "\u{fffd}"), (r#""\ud83d\ude00""#, "😀"), (r#""\ud800\u0041""#, "\u{fffd}A")]
        {
            assert_eq!(parse(text.as_bytes()), Ok(Doc::String(value.into())));
        }
        assert_eq!(parse(b"\"\xff\""), Ok(Doc::String("\u{fffd}".into())));
    }

    #[test]
    fn any_depth_is_survived() {
        let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
        assert!(parse(deep("[", "]", 1_000_000).as_bytes()).is_ok());
        assert!(parse(deep("{\"a\":[", "]}", 200_000).as_bytes()).is_ok());
        assert_eq!(parse("[".repeat(1_000_000).as_bytes()), Err(end()));
        assert!(parse((deep("[", "", 500) + &"}".repeat(500)).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn agrees_with_serde_on_json_like_text(text in r#"[\[\]{}",:0-9a-e\\ u.tru-]{0,40}"#) {
            let ours = parse(text.as_bytes()).is_ok();
            prop_assert_eq!(ours, serde_json::from_str::<serde_json::Value>(&text).is_ok()
                || (ours && text.contains("\\u")) || (ours && text.to_ascii_lowercase().contains('e')));
        }
    }
}
