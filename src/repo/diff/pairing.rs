//! Which tensor of one side is which of the other: by content, by the names' common part, and by order.
//!
//! A pure function of names, shapes and ids, but for the last step, which asks how near two tensors are. In this order,
//! each step with what the former ones left:
//! 1. same name, same bytes;
//! 2. same bytes: a matrix that is there once on each side, or any tensor whose name only gained or lost a prefix
//!    (`bert.`). Vectors that are all ones or zeros look alike everywhere, so they do not count alone;
//! 3. prefixes that took another's place, as step 2 found them (`layer.1` is `layer.0` now) or as most names that are
//!    new say, applied to the rest;
//! 4. same name, whatever the bytes and shape;
//! 5. same bytes, in order;
//! 6. same shape and dtype, and near in value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use super::super::RepoError;
use super::side::Tensor;
use crate::model::id::Id;

/// What belongs together: indices into the two sides' tensors, in the order of the second.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pairing {
    pub pairs: Vec<(usize, usize)>,
    /// Without a partner, of the first side and of the second.
    pub removed: Vec<usize>,
    pub added: Vec<usize>,
}

/// How far two tensors of the same shape and dtype are apart, relative to the first; `None` when it can't be said.
pub type Distance<'a> = dyn FnMut(usize, usize) -> Result<Option<f64>, RepoError> + 'a;

/// Prefixes that are tried, those with the most tensors first.
const MAX_RULES: usize = 256;
/// Pairs of leftovers whose distance is asked for.
const MAX_TRIED: usize = 4096;
/// Leftovers further apart than this are not the same tensor: two trainings from scratch are at about 1.4.
const NEAR: f64 = 0.3;

/// Pairs the tensors of two sides.
pub fn pair(a: &[Tensor], b: &[Tensor], distance: &mut Distance) -> Result<Pairing, RepoError> {
    let mut work = Work { a, b, to: vec![None; a.len()], from: vec![None; b.len()] };
    work.same_name(|x, y| x.id == y.id);
    work.moved();
    work.by_prefix();
    work.same_name(|_, _| true);
    work.same_bytes();
    work.nearest(distance)?;
    let pairs = work.from.iter().enumerate().filter_map(|(y, x)| Some(((*x)?, y))).collect();
    Ok(Pairing { pairs, removed: work.free_a(), added: work.free_b() })
}

/// A prefix of names on the first side, and what stands in its place on the second. Both end in a dot or are empty.
type Rule<'t> = (&'t str, &'t str);

struct Work<'t> {
    a: &'t [Tensor],
    b: &'t [Tensor],
    to: Vec<Option<usize>>,
    from: Vec<Option<usize>>,
}

impl<'t> Work<'t> {
    fn link(&mut self, x: usize, y: usize) {
        debug_assert!(self.to[x].is_none() && self.from[y].is_none());
        self.to[x] = Some(y);
        self.from[y] = Some(x);
    }

    fn free_a(&self) -> Vec<usize> {
        (0..self.a.len()).filter(|&x| self.to[x].is_none()).collect()
    }

    fn free_b(&self) -> Vec<usize> {
        (0..self.b.len()).filter(|&y| self.from[y].is_none()).collect()
    }

    /// Links each free tensor of the first side to the first free one of the second that has the same key and fits.
    fn link_by<K: Hash + Eq>(&mut self, key: impl Fn(&'t Tensor) -> K, fits: impl Fn(&Tensor, &Tensor) -> bool) {
        let mut index: HashMap<K, Vec<usize>> = HashMap::new();
        for y in self.free_b() {
            index.entry(key(&self.b[y])).or_default().push(y);
        }
        for x in self.free_a() {
            let Some(places) = index.get_mut(&key(&self.a[x])) else { continue };
            if let Some(at) = places.iter().position(|&y| fits(&self.a[x], &self.b[y])) {
                let y = places.remove(at);
                self.link(x, y);
            }
        }
    }

    /// The same name in the same file first, then anywhere.
    fn same_name(&mut self, fits: impl Fn(&Tensor, &Tensor) -> bool) {
        self.link_by(|t| (t.scope.as_str(), t.name.as_str()), &fits);
        self.link_by(|t| t.name.as_str(), &fits);
    }

    fn same_bytes(&mut self) {
        self.link_by(|t| t.id, |_, _| true);
    }

    fn moved(&mut self) {
        let (once_a, once_b) = (once(self.a), once(self.b));
        let telling = |t: &Tensor| t.shape.len() > 1 && once_a.contains(&t.id) && once_b.contains(&t.id);
        self.link_by(|t| t.id, |x, _| telling(x));
        self.link_by(|t| t.id, |x, y| one_is_a_tail(&x.name, &y.name));
    }

    fn by_prefix(&mut self) {
        let found = self.to.iter().enumerate().filter_map(|(x, y)| Some((x, (*y)?)));
        let moved = count(found.map(|(x, y)| rule(&self.a[x].name, &self.b[y].name)).filter(|(p, q)| p != q));
        for (rule, _) in moved {
            self.apply(rule, &|_, _| true);
        }
        let (names_a, names_b) = (names(self.a), names(self.b));
        let is_new = |t: &Tensor, other_side: &HashSet<&str>| !other_side.contains(t.name.as_str());
        let new_a = |x: usize| is_new(&self.a[x], &names_b);
        let new_b = |y: usize| is_new(&self.b[y], &names_a);
        let most = 4.max(self.free_a().len().min(self.free_b().len()) / 2);
        for (rule, votes) in self.rules_by_name(&new_a, &new_b) {
            if rule.0.is_empty() || rule.1.is_empty() || votes >= most {
                let new = |x: &Tensor, y: &Tensor| is_new(x, &names_b) && is_new(y, &names_a);
                self.apply(rule, &|x, y| new(x, y) && (votes > 1 || x.shape == y.shape));
            }
        }
    }

    /// What most names that are new on their side have in place of what.
    fn rules_by_name(&self, new_a: &dyn Fn(usize) -> bool, new_b: &dyn Fn(usize) -> bool) -> Vec<(Rule<'t>, usize)> {
        let mut tails: HashMap<&str, Vec<usize>> = HashMap::new();
        for y in self.free_b().into_iter().filter(|&y| new_b(y)) {
            tails_of(&self.b[y].name).for_each(|t| tails.entry(t).or_default().push(y));
        }
        let mut found = vec![];
        for x in self.free_a().into_iter().filter(|&x| new_a(x)) {
            let x = &self.a[x];
            let fits = |y: &&usize| x.shape == self.b[**y].shape;
            // The longest common end; the shortest, `weight`, many have.
            let same = tails_of(&x.name).find_map(|t| tails.get(t)?.iter().find(fits));
            found.extend(same.map(|&y| rule(&x.name, &self.b[y].name)));
        }
        count(found.into_iter())
    }

    fn apply(&mut self, (old, new): Rule, fits: &dyn Fn(&Tensor, &Tensor) -> bool) {
        let index: HashMap<&str, usize> = self.free_b().into_iter().map(|y| (self.b[y].name.as_str(), y)).collect();
        for x in self.free_a() {
            let Some(rest) = self.a[x].name.strip_prefix(old) else { continue };
            let y = index.get(format!("{new}{rest}").as_str());
            if let Some(&y) = y.filter(|&&y| self.from[y].is_none() && fits(&self.a[x], &self.b[y])) {
                self.link(x, y);
            }
        }
    }

    fn nearest(&mut self, distance: &mut Distance) -> Result<(), RepoError> {
        let mut tried = 0;
        for x in self.free_a() {
            let mut best: Option<(f64, usize)> = None;
            for y in self.free_b() {
                let alike = self.a[x].shape == self.b[y].shape && self.a[x].dtype == self.b[y].dtype;
                if !alike || tried >= MAX_TRIED {
                    continue;
                }
                tried += 1;
                let d = distance(x, y)?.filter(|&d| d < NEAR && best.is_none_or(|b| d < b.0));
                best = d.map(|d| (d, y)).or(best);
            }
            if let Some((_, y)) = best {
                self.link(x, y);
            }
        }
        Ok(())
    }
}

/// Ids that one tensor only has.
fn once(tensors: &[Tensor]) -> HashSet<Id> {
    let mut times: HashMap<Id, usize> = HashMap::new();
    tensors.iter().for_each(|t| *times.entry(t.id).or_default() += 1);
    times.into_iter().filter(|(_, n)| *n == 1).map(|(id, _)| id).collect()
}

fn names(tensors: &[Tensor]) -> HashSet<&str> {
    tensors.iter().map(|t| t.name.as_str()).collect()
}

/// The rules, those with the most votes first.
fn count<'t>(rules: impl Iterator<Item = Rule<'t>>) -> Vec<(Rule<'t>, usize)> {
    let mut votes: BTreeMap<Rule, usize> = BTreeMap::new();
    rules.for_each(|r| *votes.entry(r).or_default() += 1);
    let mut votes: Vec<_> = votes.into_iter().collect();
    votes.sort_by_key(|v| std::cmp::Reverse(v.1));
    votes.truncate(MAX_RULES);
    votes
}

/// A name and what is left of it after each dot, longest first.
fn tails_of(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once(name).chain(name.match_indices('.').map(|(at, _)| &name[at + 1..])).filter(|t| !t.is_empty())
}

/// One is the other with a prefix that ends in a dot.
fn one_is_a_tail(a: &str, b: &str) -> bool {
    let (long, short) = if a.len() > b.len() { (a, b) } else { (b, a) };
    long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.'))
}

/// What is left of two names without their longest common tail.
fn rule<'t>(a: &'t str, b: &'t str) -> Rule<'t> {
    let tail = tails_of(a).find(|t| *t == b || b.strip_suffix(t).is_some_and(|p| p.ends_with('.')));
    let tail = tail.map_or(0, str::len);
    (&a[..a.len() - tail], &b[..b.len() - tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name`, shape, and a byte that stands for the content.
    fn tensors(list: &[(&str, &[u64], u8)]) -> Vec<Tensor> {
        let tensor = |&(name, shape, id): &(&str, &[u64], u8)| Tensor {
            name: name.to_owned(),
            scope: "model".to_owned(),
            dtype: "F32".to_owned(),
            shape: shape.to_owned(),
            id: Id([id; 32]),
            file: 0,
            offset: 0,
            length: 4,
        };
        list.iter().map(tensor).collect()
    }

    fn pairs(a: &[(&str, &[u64], u8)], b: &[(&str, &[u64], u8)]) -> Vec<(String, String)> {
        let (a, b) = (tensors(a), tensors(b));
        let p = pair(&a, &b, &mut |_, _| Ok(None)).unwrap();
        assert_eq!((p.pairs.len() + p.removed.len(), p.pairs.len() + p.added.len()), (a.len(), b.len()));
        p.pairs.iter().map(|&(x, y)| (a[x].name.clone(), b[y].name.clone())).collect()
    }

    fn named(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    const M: &[u64] = &[4, 4];
    const V: &[u64] = &[4];

    #[test]
    fn a_prefix_is_found_without_any_equal_bytes() {
        let a = [("l.0.w", M, 1), ("l.0.b", V, 2), ("l.1.w", M, 3), ("pooler.w", M, 4)];
        let b = [("bert.l.0.w", M, 11), ("bert.l.0.b", V, 12), ("bert.l.1.w", M, 13), ("classifier.w", M, 14)];
        assert_eq!(pairs(&a, &b), named(&[("l.0.w", "bert.l.0.w"), ("l.0.b", "bert.l.0.b"), ("l.1.w", "bert.l.1.w")]));
        assert_eq!(pairs(&b, &a).len(), 3);
    }

    #[test]
    fn a_vector_of_ones_is_not_taken_for_another() {
        let a = [("ln.0", V, 1), ("ln.1", V, 2)];
        let b = [("ln.0", V, 3), ("ln.1", V, 1)];
        assert_eq!(pairs(&a, &b), named(&[("ln.0", "ln.0"), ("ln.1", "ln.1")]));
    }

    #[test]
    fn layers_that_moved_up_keep_their_small_tensors() {
        let a = [("l.0.w", M, 1), ("l.0.b", V, 9), ("l.1.w", M, 3), ("l.1.b", V, 4), ("l.2.w", M, 5), ("l.2.b", V, 9)];
        let b = [("l.0.w", M, 3), ("l.0.b", V, 14), ("l.1.w", M, 5), ("l.1.b", V, 9)];
        let want = [("l.1.w", "l.0.w"), ("l.1.b", "l.0.b"), ("l.2.w", "l.1.w"), ("l.2.b", "l.1.b")];
        assert_eq!(pairs(&a, &b), named(&want));
    }

    #[test]
    fn other_names_are_paired_by_bytes_and_by_nearness() {
        let a = [("h.0", M, 1), ("h.1", M, 2), ("h.2", M, 3)];
        let b = [("x", M, 2), ("y", M, 7), ("z", V, 8)];
        assert_eq!(pairs(&a, &b), named(&[("h.1", "x")]));
        let (a, b) = (tensors(&a), tensors(&b));
        let near = pair(&a, &b, &mut |x, y| Ok((y == 1).then_some(if x == 2 { 0.1 } else { 0.2 }))).unwrap();
        assert_eq!((near.pairs, near.removed, near.added), (vec![(1, 0), (0, 1)], vec![2], vec![2]));
    }

    #[test]
    fn another_shape_is_still_the_same_name() {
        let a = [("emb.w", &[10, 4][..], 1), ("l.w", M, 2), ("l.v", M, 5)];
        let b = [("m.emb.w", &[12, 4][..], 3), ("m.l.w", M, 4), ("m.l.v", M, 6)];
        assert_eq!(pairs(&a, &b)[0], ("emb.w".to_owned(), "m.emb.w".to_owned()));
    }

    #[test]
    fn rules_end_at_dots() {
        assert_eq!(rule("l.1.w", "l.0.w"), ("l.1.", "l.0."));
        assert_eq!(rule("l.w", "bert.l.w"), ("", "bert."));
        assert_eq!(rule("aw", "bw"), ("aw", "bw"));
        assert!(one_is_a_tail("l.w", "bert.l.w") && !one_is_a_tail("w", "bw") && !one_is_a_tail("w", "w"));
    }
}
