//! From scores, look by look, to a decision that does not flicker.

use crate::REST;

/// Equal looks in a row that make a decision.
const AGREE: u8 = 3;

/// Sees the gesture that led, by a margin, so many looks in a row.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    margin: i16,
    gesture: usize,
    candidate: usize,
    agreed: u8,
}

impl Decision {
    /// At rest; the first score has to lead by so many steps to count.
    pub const fn new(margin: i16) -> Decision {
        Decision { margin, gesture: REST, candidate: REST, agreed: 0 }
    }

    /// Forgets all but the margin.
    pub fn clear(&mut self) {
        *self = Decision::new(self.margin);
    }

    /// Takes what the model said; the gesture, if it is another one from now on.
    pub fn update(&mut self, scores: &[i8]) -> Option<usize> {
        let (first, lead) = leader(scores);
        if lead < self.margin {
            self.agreed = 0;
            return None;
        }
        self.agreed = if first == self.candidate { self.agreed.saturating_add(1) } else { 1 };
        self.candidate = first;
        if self.agreed < AGREE || first == self.gesture {
            return None;
        }
        self.gesture = first;
        Some(first)
    }
}

/// The number of the best score, the first of equal ones, and how far it leads.
fn leader(scores: &[i8]) -> (usize, i16) {
    let (mut first, mut best, mut next) = (0, i16::MIN / 2, i16::MIN / 2);
    for (i, &score) in scores.iter().enumerate() {
        let score = i16::from(score);
        if score > best {
            (first, best, next) = (i, score, best);
        } else {
            next = next.max(score);
        }
    }
    (first, best - next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_the_first_of_the_best() {
        assert_eq!(leader(&[-128, 127, 3]), (1, 124));
        assert_eq!(leader(&[5, -7, 5]), (0, 0));
        assert_eq!(leader(&[127, -128]), (0, 255));
        assert_eq!(leader(&[-3]).0, 0);
        assert_eq!(leader(&[]).0, 0);
    }

    #[test]
    fn three_clear_looks_in_a_row_decide() {
        let mut decision = Decision::new(10);
        let (shake, tap, doubt) = ([0, 50, 0, 0], [0, 0, 0, 10], [0, 20, 0, 11]);
        let rest = [60, 0, 0, 0];
        let looks =
            [shake, shake, tap, shake, shake, doubt, shake, shake, shake, shake, tap, tap, tap, rest, rest, rest];
        let said = looks.map(|scores| decision.update(&scores));
        let mut expected = [None; 16];
        (expected[8], expected[12], expected[15]) = (Some(1), Some(3), Some(REST));
        assert_eq!(said, expected);
        decision.update(&tap);
        decision.update(&tap);
        decision.clear();
        assert_eq!([tap; 3].map(|scores| decision.update(&scores)), [None, None, Some(3)]);
    }
}
