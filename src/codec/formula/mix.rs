//! A child as a linear mix of its bases: averages, FedAvg, interpolation, task arithmetic, a scaling, a cast.
//!
//! Idea: who made such a child wrote one of a few formulas in one of a few arithmetics; with the same formula,
//! order and roundings, most values come out to the last bit. With bases p0, p1, …:
//!
//! | origin  | value                                   |
//! |---------|-----------------------------------------|
//! | NONE    | post(w0 p0 + w1 p1 + …)                 |
//! | RUNNING | p0 + w1 (p1 - p0) + w2 (p2 - p0) + …    |
//! | APART   | p0 + post(w1 (p1 - p0) + w2 (p2 - p0) + …) |
//!
//! evaluated from left to right; `post` is nothing, a product or a quotient. Arithmetic: F32; F64; FUSED (f32, each
//! `w x + sum` rounded once, as vector units do); OWN (f32, each operation rounded to the child's type). A mix of one
//! base with weight 1 is a cast.
//!
//! Layout: u8 bases; u8 origin | post << 2 | arithmetic << 4; f64 for each weight (one fewer with an origin);
//! f64 of post, if there is one.

use super::number::{Real, load, rounded, store};
use crate::codec::plane::take;
use crate::codec::{Damage, Spec};
use crate::model::dtype::Elem;

/// Elements computed at once.
const CHUNK: usize = 256;
pub(super) const MAX_BASES: usize = 7;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    None,
    Running,
    Apart,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Post {
    None,
    Times(f64),
    Over(f64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arithmetic {
    F32,
    F64,
    Fused,
    Own,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Mix {
    pub(super) origin: Origin,
    pub(super) post: Post,
    pub(super) arithmetic: Arithmetic,
    /// One for each base but the origin.
    pub(super) weights: Vec<f64>,
}

impl Mix {
    pub(super) fn cast() -> Mix {
        Mix { origin: Origin::None, post: Post::None, arithmetic: Arithmetic::F64, weights: vec![1.0] }
    }

    pub(super) fn bases(&self) -> usize {
        self.weights.len() + (self.origin != Origin::None) as usize
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (post, factor) = match self.post {
            Post::None => (0, None),
            Post::Times(v) => (1, Some(v)),
            Post::Over(v) => (2, Some(v)),
        };
        out.extend_from_slice(&[self.bases() as u8, self.origin as u8 | post << 2 | (self.arithmetic as u8) << 4]);
        self.weights.iter().chain(&factor).for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
    }

    pub(super) fn read(input: &mut &[u8]) -> Result<Mix, Damage> {
        let head = take(input, 2)?;
        let (bases, how) = (head[0], head[1]);
        let mut number = || -> Result<f64, Damage> {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(take(input, 8)?);
            Ok(f64::from_le_bytes(bytes))
        };
        let origin = [Origin::None, Origin::Running, Origin::Apart].get(how as usize & 3);
        let arithmetic = [Arithmetic::F32, Arithmetic::F64, Arithmetic::Fused, Arithmetic::Own].get(how as usize >> 4);
        let (Some(&origin), Some(&arithmetic)) = (origin, arithmetic) else { return Err(Damage("unknown formula")) };
        let weights = (bases as usize).saturating_sub((origin != Origin::None) as usize);
        if bases as usize > MAX_BASES || weights == 0 {
            return Err(Damage("a formula of no or too many bases"));
        }
        let weights = (0..weights).map(|_| number()).collect::<Result<_, _>>()?;
        let post = match how >> 2 & 3 {
            0 => Post::None,
            1 => Post::Times(number()?),
            2 => Post::Over(number()?),
            _ => return Err(Damage("unknown formula")),
        };
        Ok(Mix { origin, post, arithmetic, weights })
    }

    /// `bases`: as many as the formula has, each with as many elements as `out`.
    pub(super) fn predict(&self, spec: Spec, bases: &[(Elem, &[u8])], out: &mut [u8]) {
        match self.arithmetic {
            Arithmetic::F64 => self.run::<f64>(spec, bases, out, |v| v, plain),
            Arithmetic::F32 => self.run::<f32>(spec, bases, out, |v| v, plain),
            Arithmetic::Fused => self.run::<f32>(spec, bases, out, |v| v, Real::fused),
            Arithmetic::Own => {
                let round = |v| rounded(spec.elem, v);
                self.run::<f32>(spec, bases, out, round, |a, b, c| round(round(a * b) + c));
            }
        }
    }

    fn run<R: Real>(
        &self,
        spec: Spec,
        bases: &[(Elem, &[u8])],
        out: &mut [u8],
        round: impl Fn(R) -> R + Copy,
        add: impl Fn(R, R, R) -> R + Copy,
    ) {
        let mut values = vec![[R::default(); CHUNK]; bases.len()];
        let mut sum = [R::default(); CHUNK];
        for (i, out) in out.chunks_mut(CHUNK * spec.elem.width()).enumerate() {
            for ((elem, bytes), values) in bases.iter().zip(&mut values) {
                let from = (i * CHUNK * elem.width()).min(bytes.len());
                load(*elem, &bytes[from..], values);
            }
            self.sum(&values, &mut sum, round, add);
            store(spec.elem, &sum, out);
        }
    }

    #[inline(always)]
    fn sum<R: Real>(
        &self,
        values: &[[R; CHUNK]],
        sum: &mut [R; CHUNK],
        round: impl Fn(R) -> R + Copy,
        add: impl Fn(R, R, R) -> R + Copy,
    ) {
        let (origin, terms) = values.split_at((self.origin != Origin::None) as usize);
        let mut started = self.origin == Origin::Running;
        if started {
            *sum = origin[0];
        }
        for (term, &w) in terms.iter().zip(&self.weights) {
            let w = R::from_f64(w);
            let mut term = *term;
            if let [origin] = origin {
                term.iter_mut().zip(origin).for_each(|(t, o)| *t = round(*t - *o));
            }
            match started {
                true => sum.iter_mut().zip(&term).for_each(|(s, &t)| *s = add(w, t, *s)),
                false => sum.iter_mut().zip(&term).for_each(|(s, &t)| *s = round(w * t)),
            }
            started = true;
        }
        match self.post {
            Post::None => {}
            Post::Times(f) => sum.iter_mut().for_each(|s| *s = round(*s * R::from_f64(f))),
            Post::Over(f) => sum.iter_mut().for_each(|s| *s = round(*s / R::from_f64(f))),
        }
        if self.origin == Origin::Apart {
            sum.iter_mut().zip(&origin[0]).for_each(|(s, o)| *s = round(*o + *s));
        }
    }
}

fn plain<R: Real>(a: R, b: R, c: R) -> R {
    a * b + c
}
