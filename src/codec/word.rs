//! Elements as unsigned words, and the order map.
//!
//! Idea: floats of one sign, read as integers, are in numeric order; flipping the magnitude bits of the
//! negatives puts both signs in one order, so that "how far apart" is an integer difference (Ting 2016,
//! FM-Delta 2024, and every radix sort of floats). `flip(x) = x ^ (x is negative ? all bits but the sign : 0)`
//! is its own inverse and permutes the bit patterns of a width: -0.0, NaN payloads and infinities are exact.
//!
//! Residual of a child to its base: `flip(child) - flip(base)` modulo 2^bits, negated where the base is
//! negative, so that positive means "away from zero". Integers: plain difference modulo 2^bits.

use crate::model::dtype::Elem;

/// An element's bit pattern. All arithmetic is modulo 2^BITS.
pub(super) trait Word: Copy + Eq + Default + 'static {
    const BYTES: usize;
    fn load(bytes: &[u8]) -> Self;
    fn store(self, bytes: &mut [u8]);
    fn from_u64(v: u64) -> Self;
    fn to_u64(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn negated(self) -> Self;
    fn is_negative(self) -> bool;
    /// The order map; its own inverse.
    fn flip(self) -> Self;
    /// Signed to unsigned with small magnitudes first: 0 -1 1 -2 2 …
    fn zigzag(self) -> Self;
    fn unzigzag(self) -> Self;
    /// Rotates the sign to the lowest bit, which leaves the exponent on top.
    fn sign_low(self) -> Self;
    fn sign_high(self) -> Self;
    /// Bits of the signed magnitude: 0 for 0, else 1 + floor(log2).
    fn magnitude_bits(self) -> u32;
    fn magnitude(self) -> u64;
    fn signed(self) -> i64;
    fn from_u32(v: u32) -> Self;
    /// +0 or -0 of a float.
    fn zero(negative: bool) -> Self;
    fn without_sign(self) -> Self;
    fn with_sign(self, negative: bool) -> Self;
    /// A float's zero of either sign.
    fn is_zero(self) -> bool;
}

macro_rules! word {
    ($u:ty, $i:ty) => {
        impl Word for $u {
            const BYTES: usize = size_of::<$u>();
            #[inline(always)]
            fn load(bytes: &[u8]) -> Self {
                <$u>::from_le_bytes(bytes[..size_of::<$u>()].try_into().unwrap_or_default())
            }
            #[inline(always)]
            fn store(self, bytes: &mut [u8]) {
                bytes[..size_of::<$u>()].copy_from_slice(&self.to_le_bytes());
            }
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $u
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn negated(self) -> Self {
                self.wrapping_neg()
            }
            #[inline(always)]
            fn is_negative(self) -> bool {
                (self as $i) < 0
            }
            #[inline(always)]
            fn flip(self) -> Self {
                self ^ (((self as $i >> (<$u>::BITS - 1)) as $u) >> 1)
            }
            #[inline(always)]
            fn zigzag(self) -> Self {
                (self << 1) ^ (self as $i >> (<$u>::BITS - 1)) as $u
            }
            #[inline(always)]
            fn unzigzag(self) -> Self {
                (self >> 1) ^ (self & 1).wrapping_neg()
            }
            #[inline(always)]
            fn sign_low(self) -> Self {
                self.rotate_left(1)
            }
            #[inline(always)]
            fn sign_high(self) -> Self {
                self.rotate_right(1)
            }
            #[inline(always)]
            fn magnitude_bits(self) -> u32 {
                <$u>::BITS - (self as $i).unsigned_abs().leading_zeros()
            }
            #[inline(always)]
            fn magnitude(self) -> u64 {
                (self as $i).unsigned_abs() as u64
            }
            #[inline(always)]
            fn signed(self) -> i64 {
                self as $i as i64
            }
            #[inline(always)]
            fn from_u32(v: u32) -> Self {
                v as $u
            }
            #[inline(always)]
            fn zero(negative: bool) -> Self {
                (negative as $u) << (<$u>::BITS - 1)
            }
            #[inline(always)]
            fn without_sign(self) -> Self {
                self & (<$u>::MAX >> 1)
            }
            #[inline(always)]
            fn with_sign(self, negative: bool) -> Self {
                self & (<$u>::MAX >> 1) | (negative as $u) << (<$u>::BITS - 1)
            }
            #[inline(always)]
            fn is_zero(self) -> bool {
                self << 1 == 0
            }
        }
    };
}
word!(u8, i8);
word!(u16, i16);
word!(u32, i32);
word!(u64, i64);

/// Runs `$body` with the type alias `$w` for the word of `$width` bytes.
macro_rules! by_width {
    ($width:expr, $w:ident => $body:expr) => {
        match $width {
            2 => {
                type $w = u16;
                $body
            }
            4 => {
                type $w = u32;
                $body
            }
            8 => {
                type $w = u64;
                $body
            }
            _ => {
                type $w = u8;
                $body
            }
        }
    };
}
pub(super) use by_width;

/// Where the exponent lies: `(word >> shift) & mask`; integers have one group, mask 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exponent {
    pub shift: u32,
    pub mask: u32,
}

impl Exponent {
    pub fn of(elem: Elem) -> Exponent {
        match elem {
            Elem::Float { width, mantissa } if (mantissa as u32) < 8 * width as u32 - 1 => Exponent {
                shift: mantissa as u32,
                mask: (1u32 << (8 * width as u32 - 1 - mantissa as u32).min(16)) - 1,
            },
            _ => Exponent { shift: 0, mask: 0 },
        }
    }
    #[inline(always)]
    pub fn get<W: Word>(self, w: W) -> usize {
        ((w.to_u64() >> self.shift) as u32 & self.mask) as usize
    }
}

pub(super) fn is_float(elem: Elem) -> bool {
    matches!(elem, Elem::Float { .. })
}

/// The residual of `child` to `base` (see the top).
#[inline(always)]
pub(super) fn residual<W: Word, const FLOAT: bool>(child: W, base: W) -> W {
    if !FLOAT {
        return child.sub(base);
    }
    let r = child.flip().sub(base.flip());
    if base.is_negative() { r.negated() } else { r }
}

/// The child of a residual; the inverse of [`residual`].
#[inline(always)]
pub(super) fn restore<W: Word, const FLOAT: bool>(r: W, base: W) -> W {
    if !FLOAT {
        return base.add(r);
    }
    let r = if base.is_negative() { r.negated() } else { r };
    base.flip().add(r).flip()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bijection<W: Word + std::fmt::Debug>(values: &[u64]) {
        for &a in values {
            let a = W::from_u64(a);
            assert_eq!(a.flip().flip(), a);
            assert_eq!(a.zigzag().unzigzag(), a);
            assert_eq!(a.sign_low().sign_high(), a);
            for &b in values {
                let b = W::from_u64(b);
                assert_eq!(restore::<W, true>(residual::<W, true>(a, b), b), a);
                assert_eq!(restore::<W, false>(residual::<W, false>(a, b), b), a);
            }
        }
    }

    #[test]
    fn the_order_map_is_exact_for_every_pattern() {
        bijection::<u8>(&(0..256).collect::<Vec<_>>());
        let f = [0.0, -0.0, 1.0, -1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-45, f32::MAX];
        bijection::<u32>(&f.map(|x| x.to_bits() as u64));
        bijection::<u16>(&[0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x3F80, 0xBF80]);
        bijection::<u64>(&[0, 1, i64::MAX as u64, i64::MIN as u64, u64::MAX, 1f64.to_bits(), (-1f64).to_bits()]);
    }

    #[test]
    fn positive_means_away_from_zero() {
        let r = |c: f32, b: f32| residual::<u32, true>(c.to_bits(), b.to_bits()) as i32;
        assert_eq!(r(1.0000001, 1.0), 1);
        assert_eq!(r(-1.0000001, -1.0), 1);
        assert_eq!(r(-1.0, -1.0000001), -1);
    }
}
