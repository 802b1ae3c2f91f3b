//! Addresses and ranges of addresses.

use std::net::{IpAddr, Ipv4Addr};

use crate::errors::{At, Errors};

/// What is said of a text that is no address.
pub(crate) const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// What is said of a text that is no range.
pub(crate) const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// A range of addresses: the address as written, and the length of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl Cidr {
    /// Reads `10.0.0.0/8`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let digits = !prefix.is_empty() && prefix.bytes().all(|c| c.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|p| digits && *p <= width)?;
        Some(Self { address, prefix })
    }

    fn bits(self) -> u128 {
        match self.address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        }
    }

    fn mask(self) -> u128 {
        match self.prefix {
            0 => 0,
            prefix => u128::MAX << (128 - u32::from(prefix)),
        }
    }

    /// Whether the address has bits beyond the prefix.
    pub(crate) fn has_host_bits(self) -> bool {
        self.bits() & !self.mask() != 0
    }

    /// Whether `inner` is part of it and smaller.
    pub(crate) fn strictly_contains(self, inner: Self) -> bool {
        self.address.is_ipv4() == inner.address.is_ipv4()
            && inner.prefix > self.prefix
            && inner.bits() & self.mask() == self.bits() & self.mask()
    }
}

/// Checks an address.
pub(crate) fn ip(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<IpAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        errors.invalid_text(at, text, NOT_AN_IP);
    }
    address
}

/// Checks a range of addresses.
pub(crate) fn cidr(text: &str, at: &At<'_>, errors: &mut Errors) -> Option<Cidr> {
    let range = Cidr::parse(text);
    if range.is_none() {
        errors.invalid_text(at, text, NOT_A_CIDR);
    }
    range
}

/// Checks a range of addresses that must be written in its shortest form.
pub(crate) fn strict_cidr(text: &str, at: &At<'_>, errors: &mut Errors) {
    let Some(range) = cidr(text, at, errors) else { return };
    if range.has_host_bits() {
        errors.invalid_text(at, text, "must not have bits set beyond the prefix length");
    } else if format!("{}/{}", range.address, range.prefix) != text {
        let canonical = format!("{}/{}", range.address, range.prefix);
        errors.invalid_text(at, text, &format!("must be in canonical form (\"{canonical}\")"));
    }
}

/// The part of the loopback addresses that is this machine itself.
///
/// Without privileges the rest of 127.0.0.0/8 is the cluster's network: pods, services and external addresses are
/// there, in ranges of the user's choice. They can be endpoints; the machine itself cannot.
const OWN_RANGE: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 16 };

/// Whether that address stands for this machine alone.
pub fn is_own(address: IpAddr) -> bool {
    let host = |v4| OWN_RANGE.strictly_contains(Cidr { address: IpAddr::V4(v4), prefix: 32 });
    address.is_loopback()
        && match address {
            IpAddr::V4(v4) => host(v4),
            IpAddr::V6(_) => true,
        }
}

/// Checks that an address can be one of another machine, or of a pod.
pub(crate) fn not_special(text: &str, at: &At<'_>, errors: &mut Errors) {
    let Ok(address) = text.parse::<IpAddr>() else { return };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    for (wrong, why) in [
        (address.is_unspecified(), format!("may not be unspecified ({address})")),
        (is_own(address), "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into(),
        ),
    ] {
        if wrong {
            errors.invalid_text(at, text, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_addresses_that_the_system_takes_for_loopback() {
        let refused = |text: &str| {
            let mut errors = Errors::default();
            not_special(text, &At::new("ip"), &mut errors);
            errors.count() > 0
        };
        assert!(!refused("127.42.0.7") && !refused("127.99.0.7") && !refused("10.0.0.1"));
        assert!(refused("127.0.0.1") && refused("127.0.43.1") && refused("::1"));
    }

    #[test]
    fn ranges() {
        let range = |text| Cidr::parse(text).unwrap();
        assert!(range("10.0.0.0/8").strictly_contains(range("10.1.0.0/16")));
        assert!(!range("10.0.0.0/8").strictly_contains(range("11.0.0.0/16")));
        assert!(!range("10.0.0.0/8").strictly_contains(range("10.0.0.0/8")));
        assert!(range("10.0.0.1/8").has_host_bits());
        assert!(!range("::/0").has_host_bits());
        for bad in ["abc", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
