//! How many requests of one client an Ingress takes in a time.

use std::{collections::HashMap, net::IpAddr};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Clients remembered; for one more those that have their full allowance are forgotten, and the half that was silent
/// longest if that leaves it half full: so that many clients do not make each request of theirs look through all.
const CLIENTS: usize = 16_384;

/// What is left of clients' allowances.
#[derive(Default)]
pub(super) struct Limits {
    clients: Mutex<HashMap<(String, IpAddr), Left>>,
}

struct Left {
    requests: f64,
    at: Instant,
    burst: f64,
    rate: f64,
}

impl Left {
    fn now(&self, now: Instant) -> f64 {
        (self.requests + now.duration_since(self.at).as_secs_f64() * self.rate).min(self.burst)
    }
}

impl Limits {
    /// Takes one request of a client into account; whether it may pass. `rate` is in requests per second, `burst`
    /// how many may come at once.
    pub(super) fn passes(&self, ingress: &str, client: IpAddr, (rate, burst): (u32, u32)) -> bool {
        let (now, key) = (Instant::now(), (ingress.to_string(), client));
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS && !clients.contains_key(&key) {
            clients.retain(|_, left| left.now(now) < left.burst);
            if clients.len() > CLIENTS / 2 {
                let mut times: Vec<Instant> = clients.values().map(|left| left.at).collect();
                let (_, median, _) = times.select_nth_unstable(CLIENTS / 2);
                let median = *median;
                let mut room = CLIENTS / 2;
                clients.retain(|_, left| {
                    let stays = left.at >= median && room > 0;
                    room -= usize::from(stays);
                    stays
                });
            }
        }
        let (rate, burst) = (f64::from(rate), f64::from(burst));
        let left = clients.entry(key).or_insert(Left { requests: burst, at: now, burst, rate });
        (left.burst, left.rate) = (burst, rate);
        left.requests = left.now(now);
        left.at = now;
        let passes = left.requests >= 1.0;
        if passes {
            left.requests -= 1.0;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_is_used_up_and_comes_back() {
        let limits = Limits::default();
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let passes = |client| limits.passes("shop/web", client, (2, 4));
        assert_eq!([(); 5].map(|()| passes(one)), [true, true, true, true, false]);
        assert!(passes(other), "another client has its own");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!([(); 2].map(|()| passes(one)), [true, false]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!([(); 5].map(|()| passes(one)), [true, true, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_bounded() {
        let limits = Limits::default();
        let passes = |n: usize| {
            let client = std::net::Ipv4Addr::from(u32::try_from(n).unwrap());
            limits.passes("shop/web", client.into(), (1, 1))
        };
        let half = CLIENTS / 2;
        assert!((0..half).all(passes));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!((half..CLIENTS).all(passes));
        assert_eq!(limits.clients.lock().len(), CLIENTS);
        assert!(passes(CLIENTS));
        assert_eq!(limits.clients.lock().len(), half + 1, "those that were silent longest are forgotten");
        assert!((half..=CLIENTS).all(|n| !passes(n)), "the others are not");
    }
}
