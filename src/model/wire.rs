//! The one way in which binary records are written: LEB128 numbers and plain bytes, read without trust.

/// Why bytes are not the record that they should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("damaged record: {0}")]
pub struct Malformed(pub &'static str);

/// Appends `n` as LEB128: seven bits a byte, low bits first, the top bit set on all but the last.
pub fn put_num(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a length (LEB128) and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_num(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over untrusted bytes. Every getter fails rather than reading past the end.
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed("it ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut a = [0; N];
        a.copy_from_slice(self.take(N)?);
        Ok(a)
    }

    pub fn num(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = (b & 0x7f) as u64;
            if bits << shift >> shift != bits || (shift > 0 && b == 0) {
                return Err(Malformed("a number is too large or not in its shortest form"));
            }
            n |= bits << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(Malformed("a number is too large"))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.num()?;
        self.take(usize::try_from(n).map_err(|_| Malformed("a length is too large"))?)
    }

    /// A count of things that take at least `each` bytes: never more than what is left could hold.
    pub fn count(&mut self, each: usize) -> Result<usize, Malformed> {
        let n = self.num()?;
        if n > (self.0.len() / each.max(1)) as u64 {
            return Err(Malformed("a count is larger than the record"));
        }
        Ok(n as usize)
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("it has bytes after its end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for n in [0, 1, 127, 128, 300, u32::MAX as u64, u64::MAX] {
            let mut out = Vec::new();
            put_num(&mut out, n);
            let mut c = Cursor(&out);
            assert_eq!(c.num(), Ok(n));
            assert_eq!(c.end(), Ok(()));
        }
        assert!(Cursor(&[0xff; 10]).num().is_err());
        assert!(Cursor(&[0x80, 0]).num().is_err());
        assert!(Cursor(&[5, 1]).bytes().is_err());
        assert!(Cursor(&[200, 1, 9]).count(1).is_err());
    }
}
