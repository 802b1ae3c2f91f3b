//! Gives back the pages of the program that only its start needed.
//!
//! The system maps a program in pieces of 64 KiB around whatever is run and counts them as resident, and of one of
//! this size most is run once or never. Given back, a page stays in the page cache while the machine has room
//! for it, and is mapped again when it is run the next time.

use std::{fs, io, time::Duration};

use nix::sys::{
    mman::{MmapAdvise, madvise},
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use tokio::time::Instant;

/// How long a start may go on after all is ready.
const START: Duration = Duration::from_secs(5);
/// How often is looked whether the program rests.
const PERIOD: Duration = Duration::from_secs(60);
/// Share of a processor that is still rest.
const REST: f64 = 0.01;

/// Keeps what is mapped of the program small while it rests. Does not end.
pub(crate) async fn keep_small() {
    tokio::time::sleep(START).await;
    give_back();
    let mut clean = true;
    let mut before = used();
    let mut ticks = tokio::time::interval_at(Instant::now() + PERIOD, PERIOD);
    loop {
        ticks.tick().await;
        let now = used();
        let rests = now.saturating_sub(before).as_secs_f64() < REST * PERIOD.as_secs_f64();
        if rests && !clean {
            give_back();
        }
        (clean, before) = (rests, now);
    }
}

fn give_back() {
    if let Err(error) = unmap_text() {
        tracing::debug!(%error, "the program's pages stay mapped");
    }
}

/// Processor time of this process.
fn used() -> Duration {
    let micros = |usage: nix::sys::resource::Usage| {
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    let micros = getrusage(UsageWho::RUSAGE_SELF).map_or(0, micros);
    Duration::from_micros(micros.try_into().unwrap_or(0))
}

/// Unmaps the pages of the machine code of the program, until they are run again.
#[allow(unsafe_code)]
fn unmap_text() -> io::Result<()> {
    let here = unmap_text as fn() -> io::Result<()> as usize;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) =
        maps.lines().filter_map(code).find(|(start, end)| (*start..*end).contains(&here))
    else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let Some(start) = std::ptr::NonNull::new(std::ptr::without_provenance_mut(start)) else { return Ok(()) };
    // SAFETY: the range is a mapping of the program's file that can be run and not written. Whatever of it is used
    // afterwards, by any thread, the system reads from the same file again.
    unsafe { madvise(start, end - start.addr().get(), MmapAdvise::MADV_DONTNEED) }.map_err(io::Error::from)
}

/// Where a line of `/proc/PID/maps` (proc(5)) says that code of a file is that nobody writes to.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && words.nth(3).is_some_and(|path| path.starts_with('/'));
    let address = |text| usize::from_str_radix(text, 16).ok();
    address(start).zip(address(end)).filter(|_| is_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found() {
        let check = |line: &str, expect: Option<(usize, usize)>| assert_eq!(code(line), expect, "{line}");
        check(
            "5579a000-5579c000 r-xp 01000000 08:01 42         /usr/bin/wasmk",
            Some((0x5579_a000, 0x5579_c000)),
        );
        check("5579a000-5579c000 r--p 01000000 08:01 42         /usr/bin/wasmk", None);
        check("5579a000-5579c000 rwxp 01000000 08:01 42         /usr/bin/wasmk", None);
        check("7fff1000-7fff3000 r-xp 00000000 00:00 0          [vdso]", None);
        check("7f001000-7f003000 r-xp 00000000 00:00 0", None);
        check("nonsense", None);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        for _ in 0..100 {
            unmap_text().unwrap();
            assert_eq!(format!("{:?}", "1 2 3".split(' ').collect::<Vec<_>>()), r#"["1", "2", "3"]"#);
        }
        assert!(used() > Duration::ZERO);
    }
}
