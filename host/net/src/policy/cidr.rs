//! Ranges of addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range as `10.0.0.0/8` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address; the rest of the bits are zero.
    bits: u128,
    /// How many of its bits count, at most 32 or 128.
    length: u8,
    four: bool,
}

impl Cidr {
    /// Whether an address is of the range. Addresses of the other family never are.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (bits, width) = of(ip);
        ip.is_ipv4() == self.four && masked(bits, width, self.length) == self.bits
    }

    /// Whether it is a range of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.four
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bits of an IPv4 address are the low ones.
        let four = || Ipv4Addr::from((self.bits & u128::from(u32::MAX)) as u32);
        match self.four {
            true => write!(f, "{}/{}", four(), self.length),
            false => write!(f, "{}/{}", Ipv6Addr::from(self.bits), self.length),
        }
    }
}

fn of(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

fn masked(bits: u128, width: u8, length: u8) -> u128 {
    let rest = u32::from(width - length);
    bits.checked_shr(rest).and_then(|kept| kept.checked_shl(rest)).unwrap_or(0)
}

/// The text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a range of addresses such as 10.0.0.0/8")]
pub struct NotARange(String);

impl FromStr for Cidr {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, NotARange> {
        let read = || {
            let (ip, length) = text.split_once('/')?;
            let ip: IpAddr = ip.parse().ok()?;
            let (bits, width) = of(ip);
            let length: u8 = length.parse().ok().filter(|length| *length <= width)?;
            Some(Self { bits: masked(bits, width, length), length, four: ip.is_ipv4() })
        };
        read().ok_or_else(|| NotARange(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_their_addresses() {
        for (range, ip, expect) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3/24", "10.1.2.200", true),
            ("0.0.0.0/0", "127.0.0.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.2", false),
            ("fd00::/64", "fd00::ffff", true),
        ] {
            let range: Cidr = range.parse().unwrap();
            assert_eq!(range.contains(ip.parse().unwrap()), expect, "{ip}");
            assert_eq!(range.to_string().parse(), Ok(range));
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/-1", "::/129", ""] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
