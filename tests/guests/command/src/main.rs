//! Does what its first argument says. The same source is built as a WASI 0.1 module and as a component.

use std::io::{self, Read, Write};
use std::time::Duration;
use std::{env, fs, process, thread};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["print", ..] => print(&args),
        ["exit", status] => process::exit(status.parse().expect("a status")),
        ["sleep", millis] => thread::sleep(Duration::from_millis(millis.parse().expect("milliseconds"))),
        ["tick", millis] => tick(Duration::from_millis(millis.parse().expect("milliseconds"))),
        ["loop"] => loop {
            std::hint::black_box(0);
        },
        ["flood"] => loop {
            println!("{}", "x".repeat(1000));
        },
        ["memory"] => hoard(),
        ["panic"] => panic!("asked to"),
        ["trap"] => dangling(),
        ["cat"] => cat(),
        ["read", path] => report(read(path)),
        ["write", path, text] => report(fs::write(path, text)),
        _ => {
            eprintln!(
                "usage: command print|exit N|sleep MS|tick MS|loop|flood|memory|panic|trap|cat|read P|write P T"
            );
            process::exit(64);
        }
    }
}

fn print(args: &[String]) {
    println!("args {args:?}");
    for (name, value) in env::vars() {
        println!("{name}={value}");
    }
    eprintln!("done");
}

/// Prints a number every so often, for ever.
fn tick(pause: Duration) {
    for n in 1_u64.. {
        println!("tick {n}");
        thread::sleep(pause);
    }
}

fn hoard() {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(vec![1; 1 << 20]);
    }
}

/// Calls a function that does not exist: its address is beyond the table.
fn dangling() {
    let address = std::hint::black_box(usize::MAX);
    // SAFETY: none; the runtime has to end this program for it.
    let function: fn() = unsafe { std::mem::transmute(address) };
    function();
}

fn cat() {
    let mut text = String::new();
    report(io::stdin().read_to_string(&mut text).and_then(|_| io::stdout().write_all(text.as_bytes())));
}

/// Prints a file. An empty one has not been written yet: whoever writes it makes it first.
fn read(path: &str) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    if text.is_empty() {
        return Err(io::Error::other(format!("{path} is empty")));
    }
    print!("{text}");
    Ok(())
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("error: {error}");
        process::exit(2);
    }
}
