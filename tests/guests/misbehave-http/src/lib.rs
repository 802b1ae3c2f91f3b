//! Does wrong what the path says.

use std::io::Write;

use wasmk_guest::{IntoResponse, Request, Response};

wasmk_guest::serve!(misbehave);

fn misbehave(request: Request) -> Response {
    match request.path() {
        "/panic" => panic!("asked to"),
        "/loop" => loop {
            std::hint::black_box(0);
        },
        "/memory" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
            }
        }
        "/exit" => std::process::exit(3),
        "/error" => Err::<Response, _>("something went wrong").into_response(),
        "/panic-midway" => Response::stream(|out| {
            out.write_all(&[b'x'; 200_000])?;
            panic!("asked to")
        }),
        "/flood" => Response::stream(|out| {
            loop {
                out.write_all(&[b'x'; 4096])?;
            }
        }),
        // It calls itself before it answers, and so on.
        "/spawn" => {
            let own = format!("http://{}/spawn", request.authority());
            let answer = wasmk_guest::fetch("GET", &own, &Default::default(), &[]);
            Response::text(format!("spawned: {}\n", answer.is_ok()))
        }
        path => Response::text(format!("no such misbehaviour: {path}\n")).with_status(404),
    }
}
