//! Element types by their safetensors names, and the layout of one element's bits.
//!
//! An unknown name is not an error: mgit stores its bytes as they are. Only known names are held to
//! `shape × width = bytes`. Widths come from the `safetensors` crate, so that a new dtype of the
//! format is a version bump here.

use safetensors::Dtype as Known;

/// What the codec needs to know of an element: how many bytes, and where sign, exponent and mantissa lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Elem {
    /// No structure is known: sub-byte dtypes, unknown dtypes, ordinary files.
    Bytes,
    /// Little-endian integer (or bool) of `width` bytes: 1, 2, 4 or 8.
    Int { width: u8 },
    /// IEEE-like: sign bit, then exponent, then `mantissa` bits, little-endian in `width` bytes.
    Float { width: u8, mantissa: u8 },
}

impl Elem {
    /// The element of a safetensors dtype name; [`Elem::Bytes`] for every name without such structure.
    pub fn of(dtype: &str) -> Elem {
        match dtype {
            "F64" => Elem::Float { width: 8, mantissa: 52 },
            "F32" => Elem::Float { width: 4, mantissa: 23 },
            "F16" => Elem::Float { width: 2, mantissa: 10 },
            "BF16" => Elem::Float { width: 2, mantissa: 7 },
            "F8_E4M3" | "F8_E4M3FNUZ" => Elem::Float { width: 1, mantissa: 3 },
            "F8_E5M2" | "F8_E5M2FNUZ" => Elem::Float { width: 1, mantissa: 2 },
            "C64" => Elem::Float { width: 4, mantissa: 23 },
            "I64" | "U64" => Elem::Int { width: 8 },
            "I32" | "U32" => Elem::Int { width: 4 },
            "I16" | "U16" => Elem::Int { width: 2 },
            "I8" | "U8" | "BOOL" => Elem::Int { width: 1 },
            _ => Elem::Bytes,
        }
    }

    /// Bytes of one element; 1 where no structure is known.
    pub fn width(self) -> usize {
        match self {
            Elem::Bytes => 1,
            Elem::Int { width } | Elem::Float { width, .. } => width as usize,
        }
    }
}

/// Bits of one element of a dtype that the format defines, else `None`.
pub fn bits(dtype: &str) -> Option<usize> {
    serde_json::from_value::<Known>(serde_json::Value::String(dtype.to_owned())).ok().map(|d| d.bitsize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_agree_with_the_format() {
        for d in [
            "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8",
            "BOOL",
        ] {
            assert_eq!(bits(d), Some(Elem::of(d).width() * 8), "{d}");
        }
        assert_eq!(bits("F4"), Some(4));
        assert_eq!(bits("Q3_K"), None);
    }
}
