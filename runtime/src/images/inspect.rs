//! What Wasm bytes are, without compiling them.

use wasmparser::{Encoding, Parser, Payload};

/// The outline of a program, as an image's config tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outline {
    Module,
    Component { imports: Vec<String>, exports: Vec<String> },
}

/// Reads the outline; the error says what is wrong with the bytes.
pub(super) fn outline(wasm: &[u8]) -> Result<Outline, String> {
    let fail = |error: wasmparser::BinaryReaderError| error.message().to_owned();
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut component = false;
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(fail)? {
            Payload::Version { encoding, .. } => {
                component |= depth == 0 && encoding == Encoding::Component;
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Nested components have names of their own.
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import.map_err(fail)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(export.map_err(fail)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(if component { Outline::Component { imports, exports } } else { Outline::Module })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines() {
        let check =
            |text: &str, expect: Outline| assert_eq!(outline(&wat::parse_str(text).unwrap()), Ok(expect));
        check("(module (func (export \"_start\")))", Outline::Module);
        check(
            r#"(component
                (import "wasi:cli/stdout@0.2.0" (instance))
                (component (import "inner" (func)))
                (instance $i)
                (export "wasi:cli/run@0.2.0" (instance $i)))"#,
            Outline::Component {
                imports: vec!["wasi:cli/stdout@0.2.0".into()],
                exports: vec!["wasi:cli/run@0.2.0".into()],
            },
        );
        for bytes in [&b""[..], b"#!/bin/sh", b"\0asm\x01\0"] {
            assert!(outline(bytes).is_err(), "{bytes:?}");
        }
    }
}
