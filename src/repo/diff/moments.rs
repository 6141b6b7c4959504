//! Sums over pairs of numbers, from which come norms, cosine, Pearson's correlation and distances.
//!
//! Pairs where either number is not finite take no part in the sums, so that one NaN does not hide the rest. A figure that
//! is not defined (a norm of nothing, an angle to zero, an overflow) is `None`, never a NaN.

/// Sums over pairs (x, y).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Pairs of two finite numbers.
    pub pairs: u64,
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
    /// Of (x - y)².
    dd: f64,
    max_abs: f64,
    pub zeros_x: u64,
    pub zeros_y: u64,
}

fn finite(v: f64) -> Option<f64> {
    v.is_finite().then_some(v)
}

impl Moments {
    /// Takes in as many pairs as both have.
    pub fn add(&mut self, x: &[f64], y: &[f64]) {
        for (&x, &y) in x.iter().zip(y) {
            self.zeros_x += (x == 0.0) as u64;
            self.zeros_y += (y == 0.0) as u64;
            if !(x.is_finite() && y.is_finite()) {
                continue;
            }
            let d = y - x;
            self.pairs += 1;
            self.x += x;
            self.y += y;
            self.xx += x * x;
            self.yy += y * y;
            self.xy += x * y;
            self.dd += d * d;
            self.max_abs = self.max_abs.max(d.abs());
        }
    }

    /// Takes in `n` pairs of two zeros.
    pub fn add_zeros(&mut self, n: u64) {
        self.pairs += n;
        self.zeros_x += n;
        self.zeros_y += n;
    }

    pub fn merge(&mut self, o: &Moments) {
        self.pairs += o.pairs;
        self.zeros_x += o.zeros_x;
        self.zeros_y += o.zeros_y;
        self.x += o.x;
        self.y += o.y;
        self.xx += o.xx;
        self.yy += o.yy;
        self.xy += o.xy;
        self.dd += o.dd;
        self.max_abs = self.max_abs.max(o.max_abs);
    }

    /// The largest |y - x|.
    pub fn max_abs(&self) -> Option<f64> {
        finite(self.max_abs).filter(|_| self.pairs > 0)
    }

    /// ‖y - x‖.
    pub fn euclidean(&self) -> Option<f64> {
        finite(self.dd.sqrt()).filter(|_| self.pairs > 0)
    }

    /// ‖y - x‖ / ‖x‖; 0 for two zeros.
    pub fn rel_l2(&self) -> Option<f64> {
        match self.dd == 0.0 && self.pairs > 0 {
            true => Some(0.0),
            false => finite((self.dd / self.xx).sqrt()),
        }
    }

    pub fn cosine(&self) -> Option<f64> {
        // Two roots: the product of the squares may overflow or vanish where the norms do not.
        finite(self.xy / (self.xx.sqrt() * self.yy.sqrt())).map(|c| c.clamp(-1.0, 1.0))
    }

    pub fn pearson(&self) -> Option<f64> {
        let n = self.pairs as f64;
        let (vx, vy) = (self.xx - self.x * self.x / n, self.yy - self.y * self.y / n);
        // What is left of a constant's variance is rounding.
        if vx <= self.xx * 1e-14 || vy <= self.yy * 1e-14 {
            return None;
        }
        finite((self.xy - self.x * self.y / n) / (vx.sqrt() * vy.sqrt())).map(|r| r.clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(x: &[f64], y: &[f64]) -> Moments {
        let mut m = Moments::default();
        m.add(x, y);
        m
    }

    #[test]
    fn figures_of_small_vectors() {
        let m = of(&[3.0, 4.0], &[3.0, 0.0]);
        assert_eq!((m.max_abs(), m.euclidean(), m.rel_l2(), m.cosine()), (Some(4.0), Some(4.0), Some(0.8), Some(0.6)));
        assert_eq!((m.zeros_x, m.zeros_y), (0, 1));
        let line = of(&[1.0, 2.0, 3.0], &[5.0, 7.0, 9.0]);
        assert!((line.pearson().unwrap() - 1.0).abs() < 1e-12);
        let mut parts = of(&[3.0], &[3.0]);
        parts.merge(&of(&[4.0], &[0.0]));
        assert_eq!(parts, m);
    }

    #[test]
    fn what_is_not_defined_is_none() {
        let m = of(&[f64::NAN, 1.0, f64::INFINITY], &[1.0, 2.0, f64::INFINITY]);
        assert_eq!((m.pairs, m.max_abs(), m.rel_l2(), m.cosine()), (1, Some(1.0), Some(1.0), Some(1.0)));
        let none = of(&[f64::NAN], &[f64::NAN]);
        assert_eq!(
            (none.max_abs(), none.rel_l2(), none.cosine(), none.pearson(), none.euclidean()),
            (None, None, None, None, None)
        );
        let zero = of(&[0.0, 0.0], &[0.0, 1.0]);
        assert_eq!((zero.rel_l2(), zero.cosine(), zero.pearson()), (None, None, None));
        assert_eq!(of(&[0.0], &[0.0]).rel_l2(), Some(0.0));
        assert_eq!(of(&[1e300], &[-1e300]).euclidean(), None);
        assert_eq!(of(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]).pearson(), None);
    }
}
