//! Keeps guests from taking all file descriptors of this process: their neighbours and the process itself
//! need some, too.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit};

/// Part of the process's descriptors that guests' sockets may take, in hundredths.
const GUESTS_PERCENT: u64 = 75;
/// Limit assumed when the system does not tell.
const USUAL: u64 = 1024;

/// Whether a guest may have another descriptor. The system always gives the lowest number that is free, so
/// the number of a new one tells that at least so many are taken.
pub(crate) fn any_left() -> bool {
    static BOUND: OnceLock<u64> = OnceLock::new();
    let bound = *BOUND.get_or_init(|| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| soft);
        limit.saturating_mul(GUESTS_PERCENT) / 100
    });
    is_below(bound)
}

fn is_below(bound: u64) -> bool {
    // Without any left it cannot even be asked.
    File::open("/dev/null").is_ok_and(|file| u64::try_from(file.as_raw_fd()).is_ok_and(|n| n < bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_number_is_compared() {
        assert!(any_left());
        assert!(!is_below(3), "the first three are always taken");
        assert!(is_below(1 << 30));
    }
}
