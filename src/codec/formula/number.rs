//! The numbers that elements stand for, and the roundings between them, the same on every machine.
//!
//! Only F64, F32, F16 and BF16 take part. Rounding is to the nearest, ties to even; a narrow type is rounded from
//! f32, as the frameworks do. A NaN is stored as the one quiet NaN, since arithmetic gives it no defined payload.

use std::ops::{Add, Div, Mul, Sub};

use crate::model::dtype::Elem;

/// f32 or f64.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    fn from_f32(v: f32) -> Self;
    fn from_f64(v: f64) -> Self;
    fn to_f32(self) -> f32;
    fn to_f64(self) -> f64;
    /// `a * b + c`, rounded once (but for the rarest of ties).
    fn fused(a: Self, b: Self, c: Self) -> Self;
}

impl Real for f32 {
    fn from_f32(v: f32) -> f32 {
        v
    }
    fn from_f64(v: f64) -> f32 {
        v as f32
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn to_f64(self) -> f64 {
        self as f64
    }
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        (a as f64 * b as f64 + c as f64) as f32
    }
}

impl Real for f64 {
    fn from_f32(v: f32) -> f64 {
        v as f64
    }
    fn from_f64(v: f64) -> f64 {
        v
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn fused(a: f64, b: f64, c: f64) -> f64 {
        a * b + c
    }
}

pub(super) const F64: Elem = Elem::Float { width: 8, mantissa: 52 };
pub(super) const F32: Elem = Elem::Float { width: 4, mantissa: 23 };
pub(super) const F16: Elem = Elem::Float { width: 2, mantissa: 10 };
pub(super) const BF16: Elem = Elem::Float { width: 2, mantissa: 7 };

pub(super) fn is_number(elem: Elem) -> bool {
    [F64, F32, F16, BF16].contains(&elem)
}

/// Reads as many elements as both sides hold. Of any type but these four, as BF16.
pub fn load<R: Real>(elem: Elem, bytes: &[u8], out: &mut [R]) {
    match elem {
        F64 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| *o = R::from_f64(f64::from_le_bytes(b))),
        F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| *o = R::from_f32(f32::from_le_bytes(b))),
        F16 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(o, &b)| *o = R::from_f32(half(u16::from_le_bytes(b))))
        }
        _ => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(o, &b)| *o = R::from_f32(f32::from_bits((u16::from_le_bytes(b) as u32) << 16))),
    }
}

/// Writes as many elements as both sides hold, each rounded to the type.
pub fn store<R: Real>(elem: Elem, values: &[R], out: &mut [u8]) {
    match elem {
        F64 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = quiet64(v.to_f64()).to_le_bytes()),
        F32 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = quiet(v.to_f32()).to_le_bytes()),
        F16 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = to_half(v.to_f32()).to_le_bytes()),
        _ => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = to_bf16(v.to_f32()).to_le_bytes()),
    }
}

fn quiet(v: f32) -> f32 {
    if v.is_nan() { f32::from_bits(0x7FC0_0000) } else { v }
}

fn quiet64(v: f64) -> f64 {
    if v.is_nan() { f64::from_bits(0x7FF8 << 48) } else { v }
}

pub(super) fn half(h: u16) -> f32 {
    let (sign, exponent, mantissa) = ((h as u32 & 0x8000) << 16, h as u32 >> 10 & 31, h as u32 & 1023);
    let magnitude = match exponent {
        0 => (mantissa as f32 / 16_777_216.0).to_bits(),
        31 => 0x7F80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(magnitude | sign)
}

pub(super) fn to_half(v: f32) -> u16 {
    let bits = v.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7FFF_FFFF);
    let h = match magnitude {
        0x7F80_0001.. => return 0x7E00,
        0x4780_0000.. => 0x7C00,
        // Below the least normal: adding 1/2 rounds to its last place, 2^-24.
        0..0x3880_0000 => (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits(),
        _ => (magnitude - (112 << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13,
    };
    h as u16 | sign
}

pub(super) fn to_bf16(v: f32) -> u16 {
    let bits = quiet(v).to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// Rounds to what `elem` can hold, to nearest, ties to even.
pub fn rounded(elem: Elem, v: f32) -> f32 {
    match elem {
        F16 => half(to_half(v)),
        BF16 => f32::from_bits((to_bf16(v) as u32) << 16),
        _ => v,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_convert_and_round_to_the_nearest_even() {
        for h in 0..=u16::MAX {
            let v = half(h);
            if v.is_nan() {
                assert_eq!(to_half(v), 0x7E00);
                continue;
            }
            assert_eq!(to_half(v), h);
            let next = half(h.wrapping_add(1));
            if v.is_finite() && next.is_finite() && (h & 0x7FFF) != 0x7FFF {
                let middle = (v as f64 + next as f64) / 2.0;
                assert_eq!(to_half(middle as f32), if h & 1 == 0 { h } else { h + 1 }, "{v}");
                assert_eq!(to_half(f32::from_bits((middle as f32).to_bits() + 1)), h + 1, "{v}");
            }
        }
        assert_eq!((to_half(65519.9), to_half(65520.0), to_half(-1e30)), (0x7BFF, 0x7C00, 0xFC00));
        assert_eq!((half(1), half(0x0400), half(0x3C00)), (5.9604645e-8, 6.103_515_6e-5, 1.0));
    }

    #[test]
    fn bf16_rounds_to_the_nearest_even() {
        for (bits, want) in
            [(0x3F80_8000u32, 0x3F80), (0x3F81_8000, 0x3F82), (0x3F80_8001, 0x3F81), (0x7F7F_FFFF, 0x7F80)]
        {
            assert_eq!(to_bf16(f32::from_bits(bits)), want);
        }
        assert_eq!(to_bf16(-f32::NAN), 0x7FC0);
    }
}
