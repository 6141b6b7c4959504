//! The numbers that the elements of a tensor stand for, as f64: for comparing tensors, whatever their dtypes.
//!
//! Reading only. Every value of every dtype here is exact as f64, except 64-bit integers beyond ±2^53, which are rounded.
//! A NaN or an infinity comes out as one: whoever adds up must look.

/// How the bytes of a dtype are read as numbers. A complex element is two of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Number {
    F64,
    F32,
    F16,
    Bf16,
    /// One byte: so many bits of mantissa, and the exponent's bias.
    F8(Small),
    I64,
    U64,
    I32,
    U32,
    I16,
    U16,
    I8,
    U8,
}

/// The floats of one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Small {
    E4M3,
    E5M2,
    E4M3Fnuz,
    E5M2Fnuz,
    E8M0,
}

impl Number {
    /// How a safetensors dtype is read; `None` where it is not known to be numbers of whole bytes.
    pub fn of(dtype: &str) -> Option<Number> {
        Some(match dtype {
            "F64" => Number::F64,
            "F32" | "C64" => Number::F32,
            "F16" => Number::F16,
            "BF16" => Number::Bf16,
            "F8_E4M3" => Number::F8(Small::E4M3),
            "F8_E5M2" => Number::F8(Small::E5M2),
            "F8_E4M3FNUZ" => Number::F8(Small::E4M3Fnuz),
            "F8_E5M2FNUZ" => Number::F8(Small::E5M2Fnuz),
            "F8_E8M0" => Number::F8(Small::E8M0),
            "I64" => Number::I64,
            "U64" => Number::U64,
            "I32" => Number::I32,
            "U32" => Number::U32,
            "I16" => Number::I16,
            "U16" => Number::U16,
            "I8" => Number::I8,
            "U8" | "BOOL" => Number::U8,
            _ => return None,
        })
    }

    /// Bytes of one number.
    pub fn width(self) -> usize {
        match self {
            Number::F64 | Number::I64 | Number::U64 => 8,
            Number::F32 | Number::I32 | Number::U32 => 4,
            Number::F16 | Number::Bf16 | Number::I16 | Number::U16 => 2,
            Number::F8(_) | Number::I8 | Number::U8 => 1,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Number::F64 | Number::F32 | Number::F16 | Number::Bf16 | Number::F8(_))
    }

    /// Replaces `out` by the numbers of `bytes`; a rest that is no whole number is left out.
    pub fn read(self, bytes: &[u8], out: &mut Vec<f64>) {
        out.clear();
        match self {
            Number::F64 => each(bytes, out, f64::from_le_bytes),
            Number::F32 => each(bytes, out, |b| f32::from_le_bytes(b) as f64),
            Number::F16 => each(bytes, out, |b| half(u16::from_le_bytes(b))),
            Number::Bf16 => each(bytes, out, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16) as f64),
            Number::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
            Number::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f64),
            Number::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f64),
            Number::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f64),
            Number::I16 => each(bytes, out, |b| i16::from_le_bytes(b) as f64),
            Number::U16 => each(bytes, out, |b| u16::from_le_bytes(b) as f64),
            Number::I8 => each(bytes, out, |b| i8::from_le_bytes(b) as f64),
            Number::U8 => each(bytes, out, |[b]| b as f64),
            Number::F8(kind) => {
                let table: [f64; 256] = std::array::from_fn(|b| small(kind, b as u8));
                each(bytes, out, |[b]| table[b as usize]);
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f64>, number: impl Fn([u8; N]) -> f64) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|&b| number(b)));
}

fn half(h: u16) -> f64 {
    ieee((h >> 15) as u64, (h >> 10 & 31) as i32, (h & 1023) as u64, 10, 15, 31)
}

/// An IEEE-like number of `bits` of mantissa; `top` is the exponent of infinity and NaN.
fn ieee(sign: u64, exponent: i32, mantissa: u64, bits: i32, bias: i32, top: i32) -> f64 {
    let magnitude = match exponent {
        e if e == top && mantissa == 0 => f64::INFINITY,
        e if e == top => f64::NAN,
        0 => mantissa as f64 * power_of_two(1 - bias - bits),
        e => ((1 << bits) + mantissa) as f64 * power_of_two(e - bias - bits),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// 2^e, for an exponent of a normal f64.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

fn small(kind: Small, b: u8) -> f64 {
    let (sign, low) = ((b >> 7) as u64, b & 0x7F);
    // No exponent of these means infinity.
    const NONE: i32 = 99;
    let (e4, m3, e5, m2) = ((low >> 3) as i32, (low & 7) as u64, (low >> 2) as i32, (low & 3) as u64);
    match kind {
        Small::E8M0 if b == 0xFF => f64::NAN,
        Small::E8M0 => power_of_two(b as i32 - 127),
        Small::E4M3 if low == 0x7F => f64::NAN,
        Small::E4M3Fnuz | Small::E5M2Fnuz if b == 0x80 => f64::NAN,
        Small::E4M3 => ieee(sign, e4, m3, 3, 7, NONE),
        Small::E4M3Fnuz => ieee(sign, e4, m3, 3, 8, NONE),
        Small::E5M2 => ieee(sign, e5, m2, 2, 15, 31),
        Small::E5M2Fnuz => ieee(sign, e5, m2, 2, 16, NONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: &str, bytes: &[u8]) -> f64 {
        let mut out = vec![];
        Number::of(dtype).unwrap().read(bytes, &mut out);
        out[0]
    }

    #[test]
    fn values_of_every_width() {
        assert_eq!(one("F64", &1.5f64.to_le_bytes()), 1.5);
        assert_eq!(one("F32", &(-0.1f32).to_le_bytes()), -0.1f32 as f64);
        for (bits, want) in
            [(0x3C00u16, 1.0), (0xC000, -2.0), (0x7BFF, 65504.0), (1, 2f64.powi(-24)), (0x0400, 2f64.powi(-14))]
        {
            assert_eq!(one("F16", &bits.to_le_bytes()), want);
        }
        assert_eq!(one("F16", &0xFC00u16.to_le_bytes()), f64::NEG_INFINITY);
        assert!(one("F16", &0x7C01u16.to_le_bytes()).is_nan());
        assert_eq!(one("BF16", &0xBFC0u16.to_le_bytes()), -1.5);
        assert_eq!((one("I8", &[0xFF]), one("U8", &[0xFF]), one("BOOL", &[1])), (-1.0, 255.0, 1.0));
        assert_eq!((one("I16", &[0, 0x80]), one("U32", &[0xFF; 4])), (-32768.0, u32::MAX as f64));
        assert_eq!((one("I64", &[0xFF; 8]), one("U64", &[0, 1, 0, 0, 0, 0, 0, 0])), (-1.0, 256.0));
        assert_eq!(Number::of("F4"), None);
    }

    #[test]
    fn floats_of_one_byte() {
        assert_eq!(
            (one("F8_E4M3", &[0x7E]), one("F8_E4M3", &[0x38]), one("F8_E4M3", &[1])),
            (448.0, 1.0, 2f64.powi(-9))
        );
        assert!(one("F8_E4M3", &[0xFF]).is_nan());
        assert_eq!((one("F8_E5M2", &[0x7B]), one("F8_E5M2", &[0xFC])), (57344.0, f64::NEG_INFINITY));
        assert_eq!((one("F8_E4M3FNUZ", &[0x7F]), one("F8_E5M2FNUZ", &[0x7F])), (240.0, 57344.0));
        assert!(one("F8_E4M3FNUZ", &[0x80]).is_nan());
        assert_eq!((one("F8_E8M0", &[127]), one("F8_E8M0", &[0])), (1.0, 2f64.powi(-127)));
    }
}
