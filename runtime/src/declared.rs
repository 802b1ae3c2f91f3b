//! What a program says of itself in a custom section.

use wasmparser::{Parser, Payload};

use crate::error::PrepareError;

/// The section by which a program declares that one instance of it may serve many requests, one after another:
/// the most requests, as a decimal number. It may stand in the component or in any module inside it.
pub const REUSE_SECTION: &str = "wasmk:instance-reuse";

/// The most requests that an instance may serve, if the program declares that.
pub(crate) fn reuse(wasm: &[u8]) -> Result<Option<u32>, PrepareError> {
    let mut parser = Parser::new(0);
    let mut outer = Vec::new();
    let mut rest = wasm;
    loop {
        let chunk =
            parser.parse(rest, true).map_err(|error| PrepareError::NotWasm(error.message().to_owned()))?;
        let wasmparser::Chunk::Parsed { consumed, payload } = chunk else {
            return Err(PrepareError::NotWasm("it ends early".to_owned()));
        };
        rest = &rest[consumed..];
        match payload {
            Payload::CustomSection(section) if section.name() == REUSE_SECTION => {
                return number(section.data()).map(Some);
            }
            // Large, and of no interest here.
            Payload::CodeSectionStart { size, .. } => {
                parser.skip_section();
                rest = rest.get(size as usize..).unwrap_or_default();
            }
            Payload::ModuleSection { parser: inner, .. }
            | Payload::ComponentSection { parser: inner, .. } => {
                outer.push(std::mem::replace(&mut parser, inner));
            }
            Payload::End(_) => match outer.pop() {
                Some(next) => parser = next,
                None => return Ok(None),
            },
            _ => {}
        }
    }
}

fn number(data: &[u8]) -> Result<u32, PrepareError> {
    let text = str::from_utf8(data).unwrap_or_default();
    text.trim().parse().ok().filter(|most| *most > 0).ok_or_else(|| {
        let found = String::from_utf8_lossy(&data[..data.len().min(32)]).into_owned();
        PrepareError::Compile(format!(
            "section {REUSE_SECTION} holds {found:?}; a number of requests was expected"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_is_what_the_section_says() {
        let check = |text: &str, expect: Option<u32>| {
            assert_eq!(reuse(&wat::parse_str(text).unwrap()).unwrap(), expect, "{text}");
        };
        check("(component)", None);
        check("(module (func (export \"f\")) (@custom \"name-of-another\" \"7\"))", None);
        check(
            "(module (func (export \"f\") nop) (@custom \"wasmk:instance-reuse\" (after last) \"7\"))",
            Some(7),
        );
        check(
            "(component (core module (func nop)) (core module (func nop) (@custom \"wasmk:instance-reuse\" \"1000\")))",
            Some(1000),
        );
    }

    #[test]
    fn what_is_no_number_is_told() {
        for value in ["", "0", "-1", "many", "99999999999"] {
            let wasm = wat::parse_str(format!("(module (@custom \"{REUSE_SECTION}\" \"{value}\"))")).unwrap();
            let error = reuse(&wasm).unwrap_err().to_string();
            assert!(error.contains(REUSE_SECTION), "{value}: {error}");
        }
        assert!(reuse(b"\0asm\x01\0").is_err());
    }
}
