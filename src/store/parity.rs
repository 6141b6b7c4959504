//! Parity of a pack: with it, a pack that rots in a few places is what it was again.
//!
//! The pack is cut into stripes of pieces; to the pieces of a stripe come some more (Reed–Solomon), so that any as many
//! pieces as there were at first make all of them. Which pieces have rotted is told by their checks. It lies beside the
//! pack, in `<id>.parity`:
//!
//! ```text
//! header     28   magic "mgit-par", the pack's id
//! length      8   of the pack
//! piece       4   bytes of a piece; the last of the pack is filled with zeros
//! stripe      4   pieces of a stripe; the last has what is left
//! permille    4   pieces added, of a thousand; one at least
//! check       4   check4 of the 20 bytes before
//! then, for each stripe: check8 of each piece, then for each added piece: its check8, its bytes
//! ```
//! It only follows from the pack: it can be deleted. It knows nothing of what a pack holds.

use std::path::{Path, PathBuf};

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use super::check::{HEADER, check4, check8, header, read_header};
use super::disk::{Disk, DiskFile};
use super::pack::parse_name;
use super::{At, Result, StoreError};

const MAGIC: &[u8; 8] = b"mgit-par";
/// Bytes before the first stripe.
const HEAD: u64 = HEADER as u64 + 24;
/// Bytes of a piece of a large pack, and pieces of a stripe: what is in memory at once is some 64 MiB and the codec's own.
const PIECE: u64 = 4096;
const STRIPE: u64 = 16_384;

#[derive(Clone, Copy)]
struct Shape {
    length: u64,
    piece: u64,
    stripe: u64,
    permille: u64,
}

impl Shape {
    /// For a pack of so many bytes: small ones are cut finely, so that a flipped bit costs little.
    fn of(length: u64, permille: u64) -> Shape {
        Shape { length, piece: (length / 256).next_multiple_of(64).clamp(64, PIECE), stripe: STRIPE, permille }
    }

    fn read(bytes: &[u8; 24]) -> Option<Shape> {
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("24 bytes")) as u64;
        let length = u64::from_le_bytes(*bytes.first_chunk()?);
        let shape = Shape { length, piece: word(8), stripe: word(12), permille: word(16) };
        let sane = (64..=1 << 20).contains(&shape.piece)
            && shape.piece.is_multiple_of(64)
            && (1..=STRIPE).contains(&shape.stripe)
            && (1..=1000).contains(&shape.permille);
        (sane && bytes[20..] == check4(&[&bytes[..20]])).then_some(shape)
    }

    fn put(&self) -> Vec<u8> {
        let mut out = self.length.to_le_bytes().to_vec();
        [self.piece, self.stripe, self.permille].iter().for_each(|n| out.extend_from_slice(&(*n as u32).to_le_bytes()));
        let check = check4(&[&out]);
        out.extend_from_slice(&check);
        out
    }

    /// First byte in the pack and pieces of each stripe, and where it begins in the parity.
    fn stripes(self) -> impl Iterator<Item = (u64, usize, u64)> {
        let pieces = self.length.div_ceil(self.piece);
        let mut at = HEAD;
        (0..pieces.div_ceil(self.stripe)).map(move |n| {
            let of = (pieces - n * self.stripe).min(self.stripe);
            let here = at;
            at += 8 * of + (8 + self.piece) * self.added(of as usize) as u64;
            (n * self.stripe * self.piece, of as usize, here)
        })
    }

    fn added(&self, pieces: usize) -> usize {
        (pieces * self.permille as usize).div_ceil(1000).max(1)
    }
}

fn paths(dir: &Path, name: &str) -> [PathBuf; 3] {
    ["pack", "parity", "tmp"].map(|e| dir.join(format!("{name}.{e}")))
}

fn codec(e: reed_solomon_simd::Error) -> StoreError {
    StoreError::damaged(format!("parity: {e}"))
}

/// The pieces of a stripe, filled with zeros where the pack ends.
fn pieces(file: &dyn DiskFile, shape: &Shape, from: u64, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count * shape.piece as usize];
    let there = file.len()?.min(shape.length).saturating_sub(from).min(bytes.len() as u64) as usize;
    file.read_at(&mut bytes[..there], from)?;
    Ok(bytes)
}

/// Writes the parity of a sealed pack; durable when it returns. Returns its bytes.
pub(super) fn write(disk: &dyn Disk, dir: &Path, name: &str, permille: u64) -> Result<u64> {
    let [pack, parity, tmp] = paths(dir, name);
    let file = disk.open(&pack).at(&pack)?;
    let shape = Shape::of(file.len().at(&pack)?, permille);
    let out = disk.create_new(&tmp).at(&tmp)?;
    out.lock(true, true).at(&tmp)?; // It is no leftover.
    let written = fill(&*file, &*out, &shape, name).at(&tmp).and_then(|()| {
        out.sync().at(&tmp)?;
        disk.rename(&tmp, &parity).at(&parity)?;
        disk.sync_dir(dir).at(dir)
    });
    if written.is_err() {
        let _ = disk.remove(&tmp);
    }
    written.and_then(|()| out.len().at(&parity))
}

fn fill(file: &dyn DiskFile, out: &dyn DiskFile, shape: &Shape, name: &str) -> std::io::Result<()> {
    out.append(&header(MAGIC, parse_name(name).unwrap_or_default()))?;
    out.append(&shape.put())?;
    for (from, count, _) in shape.stripes() {
        let bytes = pieces(file, shape, from, count)?;
        let mut encoder = ReedSolomonEncoder::new(count, shape.added(count), shape.piece as usize);
        let mut stripe = Vec::new();
        for piece in bytes.chunks(shape.piece as usize) {
            stripe.extend_from_slice(&check8(&[piece]));
            if let Ok(e) = &mut encoder {
                e.add_original_shard(piece).map_err(std::io::Error::other)?;
            }
        }
        let encoder = encoder.as_mut().map_err(|e| std::io::Error::other(*e))?;
        for added in encoder.encode().map_err(std::io::Error::other)?.recovery_iter() {
            stripe.extend_from_slice(&check8(&[added]));
            stripe.extend_from_slice(added);
        }
        out.append(&stripe)?;
    }
    Ok(())
}

/// Makes a pack what it was, from its parity. Returns how many pieces had rotted; `None` where there is no parity.
pub(super) fn mend(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Option<usize>> {
    let [pack, parity, tmp] = paths(dir, name);
    let par = match disk.open(&parity) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.at(&parity)?,
    };
    let mut head = [0; HEAD as usize];
    par.read_at(&mut head, 0).at(&parity)?;
    let id = read_header(MAGIC, head.first_chunk().expect("as many"), &format!("parity of pack {name}"))?;
    let shape = Shape::read(head[HEADER..].first_chunk().expect("as many"));
    let shape = shape.filter(|_| parse_name(name) == Some(id));
    let shape = shape.ok_or_else(|| StoreError::damaged(format!("parity of pack {name}: its head")))?;
    let file = disk.open(&pack).at(&pack)?;
    let mut rotten = (file.len().at(&pack)? != shape.length) as usize;
    for stripe in shape.stripes() {
        let (bytes, checks) = read_stripe(&*file, &*par, &shape, stripe).at(&pack)?;
        rotten += bad(&bytes, &checks, &shape).len();
    }
    if rotten == 0 {
        return Ok(Some(0));
    }
    let out = disk.create_new(&tmp).at(&tmp)?;
    out.lock(true, true).at(&tmp)?;
    let whole = restore(&*file, &*par, &*out, &shape).and_then(|()| {
        out.sync().at(&tmp)?;
        disk.rename(&tmp, &pack).at(&pack)?;
        disk.sync_dir(dir).at(dir)
    });
    if whole.is_err() {
        let _ = disk.remove(&tmp);
    }
    whole.map(|()| Some(rotten))
}

type Stripe = (u64, usize, u64);

fn read_stripe(
    file: &dyn DiskFile,
    par: &dyn DiskFile,
    shape: &Shape,
    (from, count, at): Stripe,
) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let mut checks = vec![0; 8 * count];
    par.read_at(&mut checks, at)?;
    Ok((pieces(file, shape, from, count)?, checks))
}

/// Which pieces are not as they were.
fn bad(bytes: &[u8], checks: &[u8], shape: &Shape) -> Vec<usize> {
    let pieces = bytes.chunks(shape.piece as usize).zip(checks.chunks(8)).enumerate();
    pieces.filter(|(_, (piece, check))| check8(&[piece]) != **check).map(|(i, _)| i).collect()
}

fn restore(file: &dyn DiskFile, par: &dyn DiskFile, out: &dyn DiskFile, shape: &Shape) -> Result<()> {
    let io = |error| StoreError::Io { what: "parity".to_owned(), error };
    for (from, count, at) in shape.stripes() {
        let (mut bytes, checks) = read_stripe(file, par, shape, (from, count, at)).map_err(io)?;
        let rotten = bad(&bytes, &checks, shape);
        if !rotten.is_empty() {
            let piece = shape.piece as usize;
            let added = shape.added(count);
            let mut decoder = ReedSolomonDecoder::new(count, added, piece).map_err(codec)?;
            for (i, p) in bytes.chunks(piece).enumerate().filter(|(i, _)| rotten.binary_search(i).is_err()) {
                decoder.add_original_shard(i, p).map_err(codec)?;
            }
            let mut more = vec![0; added * (8 + piece)];
            par.read_at(&mut more, at + 8 * count as u64).map_err(io)?;
            for (i, p) in more.chunks(8 + piece).enumerate() {
                if check8(&[&p[8..]]) == p[..8] {
                    decoder.add_recovery_shard(i, &p[8..]).map_err(codec)?;
                }
            }
            let restored = decoder.decode().map_err(codec)?;
            for (i, p) in restored.restored_original_iter() {
                bytes[i * piece..(i + 1) * piece].copy_from_slice(p);
            }
        }
        let there = (shape.length - from).min(bytes.len() as u64) as usize;
        out.append(&bytes[..there]).map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    const NAME: &str = "00000000000000aa";

    fn noise(n: usize) -> Vec<u8> {
        let mut x = 0x1234_5678_9abc_def1u64;
        let next = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..n).map(next).collect()
    }

    fn with(n: usize, permille: u64) -> (SimDisk, Vec<u8>, PathBuf) {
        let (disk, bytes) = (SimDisk::new(1), noise(n));
        let pack = Path::new("/").join(format!("{NAME}.pack"));
        disk.write(&pack, &bytes);
        let size = write(&disk, Path::new("/"), NAME, permille).unwrap();
        assert!(size < n as u64 * permille / 1000 + n as u64 / 6 + 400, "{size} for {n}");
        (disk, bytes, pack)
    }

    #[test]
    fn what_rots_within_the_share_comes_back() {
        for n in [0usize, 1, 63, 64, 65, 1000, 70_000, 3_000_000] {
            let (disk, bytes, pack) = with(n, 50);
            assert_eq!(mend(&disk, Path::new("/"), NAME).unwrap(), Some(0));
            for at in [0, n / 3, n.saturating_sub(1)].into_iter().filter(|_| n > 0) {
                disk.flip(&pack, at, 5);
                assert_eq!(mend(&disk, Path::new("/"), NAME).unwrap(), Some(1), "{n} {at}");
                assert!(disk.read(&pack) == bytes, "{n} {at}");
            }
        }
        let (disk, bytes, pack) = with(3_000_000, 50);
        let mut worse = bytes.clone();
        worse[1_000_000..1_140_000].fill(0);
        disk.write(&pack, &worse);
        assert!(mend(&disk, Path::new("/"), NAME).unwrap().unwrap() > 30);
        assert!(disk.read(&pack) == bytes);
        disk.write(&pack, &bytes[..bytes.len() - 100_000]);
        mend(&disk, Path::new("/"), NAME).unwrap();
        assert!(disk.read(&pack) == bytes);
    }

    #[test]
    fn more_than_the_share_is_an_error_and_changes_nothing() {
        let (disk, mut bytes, pack) = with(70_000, 20);
        bytes[..10_000].fill(1);
        disk.write(&pack, &bytes);
        assert!(mend(&disk, Path::new("/"), NAME).is_err());
        assert!(disk.read(&pack) == bytes && disk.files().len() == 2);
        disk.lose(&Path::new("/").join(format!("{NAME}.parity")));
        assert_eq!(mend(&disk, Path::new("/"), NAME).unwrap(), None);
    }

    #[test]
    fn hostile_parity_is_refused() {
        let (disk, _, _) = with(1000, 50);
        let par = Path::new("/").join(format!("{NAME}.parity"));
        let good = disk.read(&par);
        for byte in 0..HEAD as usize {
            disk.flip(&par, byte, 3);
            assert!(mend(&disk, Path::new("/"), NAME).is_err(), "{byte}");
            disk.write(&par, &good);
        }
        for cut in [0, 30, good.len() - 1] {
            disk.write(&par, &good[..cut]);
            let _ = mend(&disk, Path::new("/"), NAME);
        }
    }
}
