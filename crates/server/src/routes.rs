//! A model's name as a route: which of several targets answers a request, and which follow where it cannot.
//!
//! Pure: a function of the request's id and of who is well. Not here: what a target is, and when it is well.
//! Invariant: the same id among the same healthy targets finds the same order, on every gateway.

use sha2::{Digest, Sha256};

/// A name that leads to one of several models or services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// As clients call it.
    pub name: String,
    /// In the order in which they stand in for each other.
    pub targets: Vec<RouteTarget>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    /// The name of a model or of an upstream.
    pub model: String,
    /// Its share of the requests, among the weights of the others; 0: only where the others cannot answer.
    pub weight: u32,
}

/// The order in which targets are tried: first one drawn by weight among the healthy, then the other healthy ones as they
/// stand, then the rest, which may have recovered by then.
pub(crate) fn order(targets: &[(u32, bool)], id: &str) -> Vec<usize> {
    let healthy = |at: &usize| targets.get(*at).is_some_and(|(_, healthy)| *healthy);
    let (well, ill): (Vec<usize>, Vec<usize>) = (0..targets.len()).partition(healthy);
    let weight = |at: usize| targets.get(at).map_or(0, |(weight, _)| u64::from(*weight));
    let total: u64 = well.iter().map(|&at| weight(at)).sum();
    let mut order = well;
    if let Some(drawn) = draw(id).checked_rem(total) {
        let mut rest = drawn;
        let first = order.iter().position(|&at| match rest.checked_sub(weight(at)) {
            Some(more) => {
                rest = more;
                false
            }
            None => true,
        });
        if let Some(first) = first {
            let chosen = order.remove(first);
            order.insert(0, chosen);
        }
    }
    order.extend(ill);
    order
}

/// A number that follows from the id, as good as drawn.
fn draw(id: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    digest.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_healthy_come_first_and_stand_in_as_they_stand() {
        let check = |targets: &[(u32, bool)], expected: &[usize]| {
            for id in ["a", "b", "chatcmpl-1"] {
                assert_eq!(order(targets, id), expected, "{targets:?} {id}");
            }
        };
        check(&[], &[]);
        check(&[(1, true)], &[0]);
        check(&[(0, true), (5, true), (0, true)], &[1, 0, 2]);
        check(&[(5, false), (0, true), (0, true)], &[1, 2, 0]);
        check(&[(5, false), (0, false)], &[0, 1]);
        check(&[(0, true), (0, true)], &[0, 1]);
        check(&[(u32::MAX, false), (1, true), (0, true)], &[1, 2, 0]);
    }

    #[test]
    fn shares_are_as_the_weights() {
        let targets = [(70, true), (20, true), (10, true), (1000, false), (0, true)];
        let mut first = [0_u32; 5];
        for i in 0..10_000 {
            let id = format!("chatcmpl-{i:x}");
            let found = order(&targets, &id);
            assert_eq!(found, order(&targets, &id), "the same id finds the same");
            assert_eq!(found.len(), 5);
            first[found[0]] += 1;
        }
        // Within five standard deviations.
        for (count, share) in first.iter().zip([0.7_f64, 0.2, 0.1, 0.0, 0.0]) {
            let off = (f64::from(*count) - 10_000.0 * share).abs();
            assert!(off <= 5.0 * (10_000.0 * share * (1.0 - share)).sqrt(), "{first:?}");
        }
    }
}
