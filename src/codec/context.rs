//! What to expect of a residual before it is known: its context.
//!
//! Idea: an optimiser's step has about one absolute size in a row. With that size as `scale = 4 log2(mean |step|)`
//! in units of the last place of exponent 0, a value whose base has exponent `e` is expected to differ by
//! `2^(t/4)` units, `t = scale - 4 max(e, 1)`. `t` picks the context of the symbol and the number of low bits that are
//! noise and stored raw:
//!
//! | t             | context         | raw bits  |
//! |---------------|-----------------|-----------|
//! | below -32     | 0               | 0         |
//! | -32 to 15     | 1 + (t + 32)/2  | 0         |
//! | 16 to far - 1 | 25 + t % 4      | t/4 - 3   |
//! | from far on   | 29              | 0         |
//!
//! `far` = 4 (bits of the element - 3), at most 4 * 27: a base so small (zero, mostly) says nothing.
//! Contexts 30 and 31 are for a row's scale and for its kind. Rows that follow a staircase (stairs.rs) have contexts
//! of their own, 32 + (t + 32)/8 up to 39: they are exact or far off. 40 to 42 are of magnitude.rs, later ones not in use.
//!
//! Symbols: zigzag of `residual >> raw bits` up to 252; ZERO and OTHER_ZERO for a child that became or stays zero
//! (a pruned weight; the mask costs what it must given the base's exponent); ESCAPE for the rest. The last three
//! have no raw bits. Priors: half Laplace, half Gauss of mean |x| 2^(t/4), rounded; tables (tables.rs) start there.

use super::ans::{BITS, CONTEXTS, ESCAPE, Tables, Weights};
use std::sync::{Arc, LazyLock};

pub(super) const ZERO: u8 = 253;
pub(super) const OTHER_ZERO: u8 = 254;
pub(super) const FAR: u8 = 29;
pub(super) const SCALE: u8 = 30;
pub(super) const KIND: u8 = 31;
pub(super) const STAIRS: u8 = 32;
/// Of blocks without a base (magnitude.rs): tops, changes of scale, shared trailing zeros.
pub(super) const TOP: u8 = 40;
pub(super) const LEVEL: u8 = 41;
pub(super) const TRAILING: u8 = 42;
/// Added to `t` to index a map.
pub(super) const T_OFFSET: i32 = 64;
pub(super) const T_COUNT: usize = 256;

/// By `t + T_OFFSET`: context << BITS | raw bits << 24.
pub(super) type Map = [u32; T_COUNT];

/// The map for elements of so many bytes, of rows that follow a staircase or not.
pub(super) fn map(width: usize, stairs: bool) -> &'static Map {
    const MAPS: [[Map; 2]; 3] = [
        [make_map(1, false), make_map(1, true)],
        [make_map(2, false), make_map(2, true)],
        [make_map(4, false), make_map(4, true)],
    ];
    &MAPS[width.trailing_zeros().min(2) as usize][stairs as usize]
}

/// The first `t` of FAR, a multiple of 4.
pub(super) const fn far(width: usize) -> i32 {
    let bits = 8 * width as i32 - 3;
    4 * if bits < 27 { bits } else { 27 }
}

const fn make_map(width: i32, stairs: bool) -> Map {
    let far = far(width as usize);
    let mut map = [0; T_COUNT];
    let mut i = 0;
    while i < T_COUNT {
        let t = i as i32 - T_OFFSET;
        let (mut context, raw) = if t < -32 {
            (0, 0)
        } else if t >= far {
            (FAR as u32, 0)
        } else if t < 16 {
            (1 + (t + 32) as u32 / 2, 0)
        } else {
            (25 + t as u32 % 4, t as u32 / 4 - 3)
        };
        if stairs && t < far {
            let step = if t < -32 { 0 } else { (t + 32) as u32 / 8 };
            context = STAIRS as u32 + if step < 7 { step } else { 7 };
        }
        map[i] = context << BITS | raw << 24;
        i += 1;
    }
    map
}

#[inline(always)]
pub(super) fn index(t: i32) -> usize {
    (t + T_OFFSET).clamp(0, T_COUNT as i32 - 1) as usize
}

pub(super) fn zigzag(h: i64) -> u8 {
    ((h << 1) ^ (h >> 63)) as u8
}

/// The weights to expect of any tensor; every symbol has some.
pub(super) static PRIOR: LazyLock<Box<Weights>> = LazyLock::new(prior);
pub(super) static PRIOR_TABLES: LazyLock<Arc<Tables>> = LazyLock::new(|| Arc::new(Tables::new(&PRIOR)));

/// `2^(k/4)` for the quarter bits.
pub(super) const QUARTERS: [f64; 4] = [1.0, 1.189207115002721, std::f64::consts::SQRT_2, 1.681792830507429];

/// `2^(k/4)` by exact operations.
pub(super) fn power(k: i32) -> f64 {
    let mut v = QUARTERS[k.rem_euclid(4) as usize];
    for _ in 0..k.div_euclid(4).unsigned_abs() {
        v *= if k > 0 { 2.0 } else { 0.5 };
    }
    v
}

/// `exp(-x)` for x >= 0 from basic operations, the same on every machine.
fn exp_minus(x: f64) -> f64 {
    if x > 60.0 {
        return 0.0;
    }
    let y = x / 256.0;
    let mut v = 1.0 / (1.0 + y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y / 24.0))));
    for _ in 0..8 {
        v *= v;
    }
    v
}

fn prior() -> Box<Weights> {
    let mut weights = Box::new([[0.0; 256]; CONTEXTS]);
    for context in 0..FAR as i32 {
        // The middle of the context's range of t, in units of the symbol.
        let t4 = match context {
            0 => -4 * 10,
            1..=24 => 2 * context - 34 + 1,
            _ => 4 * 3 + context - 25,
        };
        fill_prior(power(t4) * 1.09, &mut weights[context as usize]);
    }
    weights[FAR as usize][0] = 1.0;
    weights[FAR as usize][ZERO as usize] = 1.0;
    for (i, w) in weights[SCALE as usize].iter_mut().take(60).enumerate() {
        *w = exp_minus(i as f64 * 0.3);
    }
    weights[KIND as usize][..3].copy_from_slice(&[0.95, 0.04, 0.01]);
    for step in 0..8 {
        fill_prior(power(8 * step - 32), &mut weights[(STAIRS as i32 + step) as usize]);
    }
    for h in -126..=126 {
        // The logarithm of a normal value's size, in quarter bits from its mean.
        let x = 0.53 * power(h);
        weights[TOP as usize][zigzag(h as i64) as usize] = x * exp_minus(x * x / 2.0);
    }
    for (i, w) in weights[LEVEL as usize].iter_mut().take(60).enumerate() {
        *w = exp_minus(i as f64 * 0.5);
    }
    weights[TRAILING as usize][..25].fill(0.004);
    weights[TRAILING as usize][0] = 1.0;
    weights[TRAILING as usize + 1..].iter_mut().for_each(|w| w[0] = 1.0);
    for w in weights.iter_mut() {
        let sum: f64 = w.iter().sum();
        for (symbol, w) in w.iter_mut().enumerate() {
            let floor = match symbol as u8 {
                ESCAPE => 1.0 / 2048.0,
                ZERO | OTHER_ZERO => 1.0 / 16384.0,
                _ => 1.0 / 65536.0,
            };
            *w = (*w / sum).max(floor);
        }
    }
    weights
}

/// Half Laplace, half Gauss with mean |x| = m, in cells around the integers.
fn fill_prior(m: f64, weights: &mut [f64; 256]) {
    const STEPS: i32 = 32;
    for h in -126..=126 {
        let mut w = 0.0;
        for step in 0..STEPS {
            let x = h as f64 - 0.5 + (step as f64 + 0.5) / STEPS as f64;
            let x = if x < 0.0 { -x } else { x };
            let laplace = exp_minus(x / m) / (2.0 * m);
            let gauss = exp_minus(x * x / (m * m * std::f64::consts::PI)) / (m * std::f64::consts::PI);
            w += (laplace + gauss) / 2.0;
        }
        weights[zigzag(h) as usize] = w / STEPS as f64;
    }
}
