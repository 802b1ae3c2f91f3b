//! Mines: fetches random bytes from `rng`, has them hashed by `hasher`, and keeps those in `redis` whose hash begins
//! with a zero. Tells once a second how many it did.

use std::{
    io::{self, Read},
    thread,
    time::{Duration, Instant},
};

use wasmk_guest::fetch;

/// How often it tells.
const INTERVAL: Duration = Duration::from_secs(1);
/// Rest when something is not there.
const REST: Duration = Duration::from_secs(1);

fn main() {
    loop {
        if let Err(error) = mine() {
            println!("In work loop: {error}; it goes on in a moment");
        }
        thread::sleep(REST);
    }
}

/// Works until something fails.
fn mine() -> io::Result<()> {
    let mut redis = resp::Client::connect("redis", 6379)?;
    let (mut deadline, mut done) = (Instant::now() + INTERVAL, 0_u32);
    loop {
        if Instant::now() >= deadline {
            println!("{done} units of work done, updating hash counter");
            redis.call(&["INCRBY", "hashes", &done.to_string()])?;
            (deadline, done) = (Instant::now() + INTERVAL, 0);
        }
        work(&mut redis)?;
        done += 1;
    }
}

fn work(redis: &mut resp::Client) -> io::Result<()> {
    let mut random = Vec::new();
    answered(fetch("GET", "http://rng/32", &Default::default(), b"")?)?.body().read_to_end(&mut random)?;
    let hash = answered(fetch("POST", "http://hasher/", &Default::default(), &random)?)?.text()?;
    if !hash.starts_with('0') {
        return Ok(());
    }
    println!("Coin found: {}...", hash.get(..8).unwrap_or(&hash));
    let bytes: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    redis.call(&["HSET", "wallet", &hash, &bytes]).map(drop)
}

fn answered(answer: wasmk_guest::Fetched) -> io::Result<wasmk_guest::Fetched> {
    match answer.status() {
        200 => Ok(answer),
        status => Err(io::Error::other(format!("status {status}"))),
    }
}
