//! A tensor's sketch: some of its values, at places that follow from its shape alone, so that two tensors of one
//! shape are compared at the same places whatever their names and dtypes. Small changes change it little.
//!
//! All places lie in one window of at most [`WINDOW`] elements, which lies within one block for every dtype, so a
//! stored tensor is sketched from one block. The window does not move when a matrix gains some rows.
//!
//! Where the values come from, and what a likeness means, is not its business.

use super::id::Id;
use super::number::Number;

/// Elements of a window.
pub const WINDOW: u64 = 4096;
/// Values of a sketch.
pub const VALUES: usize = 64;
/// So few places may be alike by chance.
const FEW: u32 = 16;
/// Fewest elements of a tensor that is sketched.
const MIN_ELEMENTS: u64 = 64;

/// What tensors of one kind have in common: the rank and the dimensions, but for the first of several.
/// A vector of another length is another thing; a matrix with more rows may be the same one, grown.
pub fn kind(shape: &[u64]) -> Vec<u64> {
    let tail = if shape.len() > 1 { &shape[1..] } else { shape };
    [&[shape.len() as u64], tail].concat()
}

/// A kind's number.
pub fn class(shape: &[u64]) -> u32 {
    u32::from_le_bytes(*hash(shape).first_chunk().expect("32 bytes"))
}

fn first(shape: &[u64]) -> u32 {
    shape.first().map_or(0, |&n| u32::try_from(n).unwrap_or(u32::MAX))
}

fn hash(shape: &[u64]) -> [u8; 32] {
    Id::of(&kind(shape).iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()).0
}

/// Can a tensor of this dtype and shape be sketched? Weights are floats, or bytes when quantized; wider integers
/// are counts and indices.
pub fn suits(dtype: &str, shape: &[u64]) -> bool {
    let kind = Number::of(dtype).filter(|n| n.is_float() || matches!(n, Number::I8 | Number::U8));
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    kind.is_some() && dtype != "BOOL" && !dtype.starts_with('C') && elements.is_some_and(|n| n >= MIN_ELEMENTS)
}

/// The elements that are looked at of a tensor: the first, and how many.
pub fn window(shape: &[u64]) -> (u64, usize) {
    let elements: u64 = shape.iter().product();
    let steady = steady(elements);
    if steady <= WINDOW {
        return (0, steady as usize);
    }
    let at = u32::from_le_bytes(*hash(shape)[4..].first_chunk().expect("28 bytes")) as u64;
    (at % (steady / WINDOW) * WINDOW, WINDOW as usize)
}

/// The largest power of two within: it seldom changes when some rows are added.
fn steady(elements: u64) -> u64 {
    1 << elements.max(1).ilog2()
}

/// Which values of its window a sketch has.
fn places(shape: &[u64]) -> Vec<usize> {
    let step = (window(shape).1 / VALUES).max(1);
    let jitter = hash(shape);
    let count = (window(shape).1 / step).min(VALUES);
    (0..count).map(|i| i * step + jitter[i % 32] as usize * step / 256).collect()
}

/// Of each value of a sketch, the row of the matrix that it is from.
pub fn rows(shape: &[u64]) -> Vec<u64> {
    let columns = shape.last().map_or(1, |c| (*c).max(1));
    places(shape).into_iter().map(|at| (window(shape).0 + at as u64) / columns).collect()
}

/// Some values of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct Sketch {
    pub class: u32,
    /// The first dimension, which the class leaves out; the largest number for a longer one.
    pub first: u32,
    pub values: Vec<f32>,
    /// Which values lie above the mean of those that are not zero, and which are not zero.
    above: u64,
    present: u64,
}

/// How alike two sketches are, where neither is zero.
#[derive(Clone, Copy, Debug)]
pub struct Likeness {
    /// Places that were compared.
    pub places: u32,
    /// Pearson's correlation.
    pub correlation: f64,
}

impl Sketch {
    /// From the values of a window; `None` where they tell nothing: too few distinct ones.
    pub fn of_window(shape: &[u64], window: &[f32]) -> Option<Sketch> {
        Sketch::new(
            class(shape),
            first(shape),
            places(shape).into_iter().map(|i| *window.get(i).unwrap_or(&0.0)).collect(),
        )
    }

    /// `None` where the values tell nothing.
    pub fn new(class: u32, first: u32, values: Vec<f32>) -> Option<Sketch> {
        let mut seen = values.iter().filter(|v| **v != 0.0);
        let differ = seen.next().is_some_and(|one| seen.any(|v| v != one));
        if !differ || values.len() > VALUES || !values.iter().all(|v| v.is_finite()) {
            return None;
        }
        let bits = |f: &dyn Fn(f32) -> bool| values.iter().enumerate().fold(0, |b, (i, v)| b | (f(*v) as u64) << i);
        let present = bits(&|v| v != 0.0);
        let mean = values.iter().sum::<f32>() / present.count_ones() as f32;
        let above = bits(&|v| v > mean);
        Some(Sketch { class, first, values, above, present })
    }

    /// What else tells the two apart: places where only one is zero, and another number of rows.
    pub fn mismatches(&self, other: &Sketch) -> u32 {
        (self.present ^ other.present).count_ones() + if self.first == other.first { 0 } else { VALUES as u32 }
    }

    /// Could one come from the other? Not of another kind, nor where a quarter of many values lies on other sides.
    pub fn may_be_kin(&self, other: &Sketch) -> bool {
        let both = self.present & other.present;
        let apart = ((self.above ^ other.above) & both).count_ones();
        self.class == other.class && (4 * apart <= both.count_ones() || both.count_ones() < FEW)
    }

    /// `None` where they cannot come from each other.
    pub fn likeness(&self, other: &Sketch) -> Option<Likeness> {
        let both = self.present & other.present;
        let places = both.count_ones();
        if places < 4 || !self.may_be_kin(other) {
            return None;
        }
        let pairs = self.values.iter().zip(&other.values).enumerate().filter(|(i, _)| both >> i & 1 == 1);
        let correlation = correlation(pairs.map(|(_, (a, b))| (*a as f64, *b as f64)))?;
        Some(Likeness { places, correlation })
    }
}

impl Likeness {
    /// Hardly by chance.
    pub fn is_kin(&self) -> bool {
        self.correlation > if self.places < FEW { 0.97 } else { 0.85 }
    }
}

/// Pearson's; `None` where either does not vary.
pub fn correlation(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let (n, sx, sy) = pairs.clone().fold((0.0, 0.0, 0.0), |(n, x, y), (a, b)| (n + 1.0, x + a, y + b));
    let (mx, my) = (sx / n, sy / n);
    let (xx, yy, xy) = pairs.fold((0.0, 0.0, 0.0), |(xx, yy, xy), (a, b)| {
        let (a, b) = (a - mx, b - my);
        (xx + a * a, yy + b * b, xy + a * b)
    });
    let r = xy / (xx * yy).sqrt();
    r.is_finite().then_some(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64) -> Vec<f32> {
        let at = |i: u64| Id::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).0;
        (0..WINDOW).map(|i| (at(i)[0] as f32 - 127.5) / 100.0).collect()
    }

    fn sketch(shape: &[u64], values: &[f32]) -> Sketch {
        Sketch::of_window(shape, values).unwrap()
    }

    #[test]
    fn the_window_follows_from_the_shape_and_stays_when_rows_are_added() {
        for shape in [&[384, 384][..], &[30522, 384], &[64], &[1000, 3, 3, 3], &[1 << 20, 1 << 12]] {
            let (start, len) = window(shape);
            assert!(start + len as u64 <= shape.iter().product() && start % WINDOW == 0 && len <= WINDOW as usize);
        }
        assert_eq!((window(&[30522, 384]), class(&[30522, 384])), (window(&[30600, 384]), class(&[30600, 384])));
        assert_ne!(class(&[384]), class(&[1, 384]));
        assert_ne!(class(&[384, 2]), class(&[384, 3]));
    }

    #[test]
    fn kin_is_told_from_strangers() {
        let shape = [512u64, 512];
        let (a, b) = (values(1), values(2));
        let near: Vec<f32> = a.iter().zip(&b).map(|(x, e)| x + 0.01 * e).collect();
        let mut pruned = a.clone();
        pruned.iter_mut().filter(|v| v.abs() < 1.0).for_each(|v| *v = 0.0);
        let scaled: Vec<f32> = a.iter().map(|x| (x * 90.0).round()).collect();
        let whole = sketch(&shape, &a);
        for child in [&a, &near, &pruned, &scaled] {
            assert!(whole.likeness(&sketch(&shape, child)).unwrap().is_kin());
        }
        assert!((2..200).all(|s| whole.likeness(&sketch(&shape, &values(s))).is_none_or(|l| !l.is_kin())));
        assert!(whole.likeness(&sketch(&[512, 511], &a)).is_none());
        assert!(Sketch::of_window(&shape, &vec![1.0; WINDOW as usize]).is_none(), "a constant tells nothing");
        assert!(Sketch::of_window(&shape, &vec![f32::NAN; WINDOW as usize]).is_none());
    }

    #[test]
    fn counts_and_masks_are_no_weights() {
        for (dtype, shape, suits_it) in
            [("F32", &[64u64][..], true), ("I8", &[8, 8], true), ("I64", &[64], false), ("BOOL", &[64], false)]
        {
            assert_eq!(suits(dtype, shape), suits_it, "{dtype}");
        }
        assert!(
            !suits("F32", &[63]) && !suits("F32", &[u64::MAX, 2]) && !suits("F4", &[64, 64]) && !suits("C64", &[64])
        );
    }
}
