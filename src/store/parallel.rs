//! The same work on many things, on all cores: reading a thousand footers when a repository is opened.
//!
//! Threads of its own, for the caller may hold a lock: a pool's thread that waits would take up other work that wants
//! the same lock. The caller does its share. Few things are done at once, in order, as the simulated disk's schedules
//! want it.

use std::thread;

/// Fewer things than this are not worth a thread.
const LEAST: usize = 64;

/// `f` of each, in order.
pub fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = || thread::available_parallelism().map_or(1, |n| n.get());
    let size = if items.len() <= LEAST { LEAST } else { items.len().div_ceil(cores()).max(LEAST) };
    if items.len() <= size {
        return items.iter().map(f).collect();
    }
    let work = |part: &[T]| part.iter().map(&f).collect::<Vec<R>>();
    let (own, others) = items.split_at(size);
    thread::scope(|s| {
        let hands: Vec<_> = others.chunks(size).map(|part| s.spawn(|| work(part))).collect();
        let mut out = work(own);
        hands.into_iter().for_each(|h| out.extend(h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
        out
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_are_done_in_order() {
        for n in [0, 1, super::LEAST, super::LEAST + 1, 1000] {
            let items: Vec<usize> = (0..n).collect();
            assert_eq!(super::map(&items, |i| i * 2), items.iter().map(|i| i * 2).collect::<Vec<_>>());
        }
    }
}
