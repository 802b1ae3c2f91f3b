//! What Wasm bytes are, without compiling them.

use wasmparser::{ComponentTypeRef, Encoding, Parser, Payload};

use crate::imports::offers;

/// The outline of a program, as an image's config tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outline {
    /// What it imports, as `module::name`.
    Module { imports: Vec<String> },
    /// The interfaces it imports and exports.
    Component { imports: Vec<String>, exports: Vec<String> },
}

impl Outline {
    /// The first import that guests are not offered.
    pub(super) fn missing(self) -> Option<String> {
        let (Self::Module { imports } | Self::Component { imports, .. }) = self;
        imports.into_iter().find(|import| !offers(import))
    }
}

/// Reads the outline; the error says what is wrong with the bytes.
pub(super) fn outline(wasm: &[u8]) -> Result<Outline, String> {
    let fail = |error: wasmparser::BinaryReaderError| error.message().to_owned();
    let (mut imports, mut exports, mut of_module) = (Vec::new(), Vec::new(), Vec::new());
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
                    let import = import.map_err(fail)?;
                    // A type is a name for what another import has.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ImportSection(section) if depth == 1 => {
                for import in section.into_imports() {
                    let import = import.map_err(fail)?;
                    of_module.push(format!("{}::{}", import.module, import.name));
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
    Ok(match component {
        true => Outline::Component { imports, exports },
        false => Outline::Module { imports: of_module },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines() {
        let check =
            |text: &str, expect: Outline| assert_eq!(outline(&wat::parse_str(text).unwrap()), Ok(expect));
        let module = |imports: &[&str]| Outline::Module {
            imports: imports.iter().map(|name| (*name).into()).collect(),
        };
        check("(module (func (export \"_start\")))", module(&[]));
        check(
            r#"(module (import "env" "magic" (func)) (import "wasi_snapshot_preview1" "sched_yield" (func)))"#,
            module(&["env::magic", "wasi_snapshot_preview1::sched_yield"]),
        );
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
        let missing = |text: &str| outline(&wat::parse_str(text).unwrap()).unwrap().missing();
        assert_eq!(
            missing(r#"(component (import "a:b/c@1.2.0" (instance)))"#).as_deref(),
            Some("a:b/c@1.2.0")
        );
        assert_eq!(missing(r#"(component (import "wasi:io/poll@0.2.0" (instance)))"#), None);
        for bytes in [&b""[..], b"#!/bin/sh", b"\0asm\x01\0"] {
            assert!(outline(bytes).is_err(), "{bytes:?}");
        }
    }
}
