//! Three-way: what A and B changed since their base, tensor by tensor and file by file. Symmetric in A and B but for the
//! word that names a side.
//!
//! Tensors go by their names; where A and B have names that the base has not (a prefix that fine-tuning gave), by those that
//! its tensors have in A. They are the same when their ids are, so nothing is read but what such a pairing takes. A changed and B did not: A's is taken (a removal,
//! too), and the other way round; the same change on both sides is taken once; anything else is a conflict. Two tensors
//! that were changed on different sides and feed each other ([`Layers`]) are a possible conflict. Other files go the same
//! way; where both changed one, its text is merged ([`text`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::layout::{Pick, layout};
use super::text::{self, Merged};
use super::{Decided, Input, Note, Outcome, Output, Plan, Source, What};
use crate::model::feeds::Layers;
use crate::model::id::Id;
use crate::model::name::printable;
use crate::model::record::{EntryKind, FileEntry};
use crate::repo::RepoError;
use crate::repo::diff::pair;
use crate::repo::diff::side::Tensor;

/// Places among the inputs.
const BASE: usize = 0;
const A: usize = 1;
const B: usize = 2;

/// What decides where both sides changed the same thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolve {
    Nothing,
    Ours,
    Theirs,
    /// Of tensors; files still conflict.
    Driver,
}

/// Which side's is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It is the same everywhere.
    Unchanged,
    A,
    B,
    /// Both made the same change.
    Both,
    Conflict,
}

fn verdict<T: PartialEq>(base: Option<&T>, a: Option<&T>, b: Option<&T>) -> Verdict {
    match () {
        _ if a == b && a == base => Verdict::Unchanged,
        _ if a == b => Verdict::Both,
        _ if a == base => Verdict::B,
        _ if b == base => Verdict::A,
        _ => Verdict::Conflict,
    }
}

/// How a side changed a thing, in a word.
fn change<T: PartialEq>(base: Option<&T>, side: Option<&T>) -> &'static str {
    match (base, side) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    }
}

fn note<T: PartialEq>(name: &str, verdict: Verdict, [base, a, b]: [Option<&T>; 3]) -> Note {
    let outcome = if verdict == Verdict::Conflict { Outcome::Conflict } else { Outcome::None };
    let change = match verdict {
        Verdict::Unchanged => String::new(),
        Verdict::A => format!("a: {}", change(base, a)),
        Verdict::B => format!("b: {}", change(base, b)),
        Verdict::Both => format!("both: {}, the same", change(base, a)),
        Verdict::Conflict => format!("a: {}, b: {}", change(base, a), change(base, b)),
    };
    Note { name: name.to_owned(), outcome, change }
}

/// `inputs`: base, A, B.
pub fn plan(inputs: &[Input; 3], resolve: Resolve) -> Result<Plan, RepoError> {
    let mut tensors = Tensors::of(inputs)?;
    let decided = tensors.decide(inputs, resolve);
    let mut outputs = layout(inputs, &decided, Pick::ThreeWay)?;
    let mut files = Vec::new();
    plain_files(inputs, resolve, &decided, &mut files, &mut outputs)?;
    outputs.sort_by(|x, y| x.path.cmp(&y.path));
    tidy(&mut outputs)?;
    let notes = tensors.notes;
    let outcome = notes.iter().chain(&files).map(|n| n.outcome).max().unwrap_or(Outcome::None);
    Ok(Plan { outcome, tensors: notes, files, outputs })
}

/// Scope and name.
type Key = (String, String);

fn key_of(t: &Tensor) -> Key {
    (t.scope.clone(), t.name.clone())
}

/// Of tensors of the base whose names neither side has: what A and B call them.
fn renamed(inputs: &[Input; 3]) -> Result<HashMap<usize, Key>, RepoError> {
    let keys = |i: usize| inputs[i].side.tensors.iter().map(key_of).collect::<HashSet<Key>>();
    let [base, a, b] = [BASE, A, B].map(keys);
    if !a.iter().any(|k| b.contains(k) && !base.contains(k)) {
        return Ok(HashMap::new());
    }
    let pairs = pair(&inputs[BASE].side, &inputs[A].side)?.pairs;
    let key = |(x, y): (usize, usize)| {
        let (old, new) = (key_of(&inputs[BASE].side.tensors[x]), key_of(&inputs[A].side.tensors[y]));
        let moved = !a.contains(&old) && !b.contains(&old) && b.contains(&new) && !base.contains(&new);
        moved.then_some((x, new))
    };
    Ok(pairs.into_iter().filter_map(key).collect())
}

/// The tensors of all three, by scope and name.
struct Tensors {
    all: BTreeMap<Key, [Option<usize>; 3]>,
    notes: Vec<Note>,
}

impl Tensors {
    fn of(inputs: &[Input; 3]) -> Result<Tensors, RepoError> {
        let mut all: BTreeMap<Key, [Option<usize>; 3]> = BTreeMap::new();
        let renamed = renamed(inputs)?;
        for (input, place) in inputs.iter().zip(0..) {
            for (at, t) in input.side.tensors.iter().enumerate() {
                let key = renamed.get(&at).filter(|_| place == BASE).cloned();
                let found: &mut [Option<usize>; 3] = all.entry(key.unwrap_or_else(|| key_of(t))).or_default();
                if found[place].replace(at).is_some() {
                    let name = printable(&t.name);
                    return Err(RepoError::refused(format!(
                        "tensor '{name}' is there twice: in two shards of a model"
                    )));
                }
            }
        }
        Ok(Tensors { all, notes: vec![] })
    }

    fn decide(&mut self, inputs: &[Input; 3], resolve: Resolve) -> Vec<Decided> {
        let mut decided = Vec::new();
        let mut changed = Vec::new();
        for ((_, name), places) in &self.all {
            let tensors = three(inputs, places);
            let ids: [Option<&Id>; 3] = tensors.map(|t| t.map(|t| &t.id));
            let mut verdict = verdict(ids[BASE], ids[A], ids[B]);
            let mut note = note(name, verdict, ids);
            if verdict == Verdict::Conflict {
                verdict = match resolve {
                    Resolve::Ours => Verdict::A,
                    Resolve::Theirs => Verdict::B,
                    _ => verdict,
                };
                if resolve != Resolve::Nothing {
                    note.outcome = Outcome::None;
                    note.change += if resolve == Resolve::Driver { ", left to the driver" } else { ", resolved" };
                }
            }
            decided.extend(take(inputs, places, verdict, resolve));
            if verdict != Verdict::Unchanged {
                changed.push((name.as_str(), verdict));
                self.notes.push(note);
            }
        }
        let names = inputs.iter().flat_map(|i| i.side.tensors.iter().map(|t| t.name.as_str()));
        possible(&Layers::of(names), &changed, &mut self.notes);
        decided
    }
}

fn three<'i>(inputs: &'i [Input; 3], places: &[Option<usize>; 3]) -> [Option<&'i Tensor>; 3] {
    [BASE, A, B].map(|i| places[i].map(|at| &inputs[i].side.tensors[at]))
}

/// The tensor of the result, in its file; nothing where it was removed, or conflicts.
fn take(inputs: &[Input; 3], places: &[Option<usize>; 3], verdict: Verdict, resolve: Resolve) -> Option<Decided> {
    let tensors = three(inputs, places);
    let input = match verdict {
        Verdict::B => B,
        Verdict::Conflict if tensors[A].is_none() => B,
        _ => A,
    };
    let t = tensors[input]?;
    let mut decided = match verdict {
        Verdict::Conflict if resolve == Resolve::Driver => Decided::made(inputs, input, t, Source::Driver(*places)),
        Verdict::Conflict => return None,
        _ => Decided::taken(inputs, input, t),
    };
    let path = |i: usize| tensors[i].map(|t| inputs[i].side.files[t.file].path.as_str());
    if let (Some(a), Some(b)) = (path(A), path(B)) {
        let moved = if Some(a) == path(BASE) {
            b
        } else if Some(b) == path(BASE) {
            a
        } else {
            a.min(b)
        };
        decided.path = moved.to_owned();
    }
    Some(decided)
}

/// Marks what changed on one side and feeds, or is fed by, what changed on the other.
fn possible(layers: &Layers, changed: &[(&str, Verdict)], notes: &mut [Note]) {
    let of = |side| changed.iter().filter(move |c| c.1 == side).map(|c| c.0).collect::<Vec<_>>();
    let (by_a, by_b) = (of(Verdict::A), of(Verdict::B));
    for ((name, verdict), note) in changed.iter().zip(notes) {
        let others = match verdict {
            Verdict::A => &by_b,
            Verdict::B => &by_a,
            _ => continue,
        };
        if let Some(other) = others.iter().find(|o| layers.feed(name, o)) {
            note.outcome = note.outcome.max(Outcome::Possible);
            note.change += &format!(", feeds or is fed by '{other}'");
        }
    }
}

/// All that holds no tensors.
fn plain_files(
    inputs: &[Input; 3],
    resolve: Resolve,
    decided: &[Decided],
    notes: &mut Vec<Note>,
    outputs: &mut Vec<Output>,
) -> Result<(), RepoError> {
    let paths: BTreeSet<&str> = inputs.iter().flat_map(|i| i.record.files.iter().map(|f| f.path.as_str())).collect();
    for path in paths.into_iter().filter(|p| !inputs.iter().any(|i| i.has_tensors(p))) {
        let entries = [BASE, A, B].map(|i| inputs[i].entry(path));
        let content = |e: Option<&FileEntry>| e.map(|e| (e.kind, e.digest));
        let contents = entries.map(content);
        let verdict = verdict(contents[BASE].as_ref(), contents[A].as_ref(), contents[B].as_ref());
        let mut note = note(path, verdict, contents.each_ref().map(Option::as_ref));
        let what = match verdict {
            Verdict::B => entries[B].cloned().map(What::Stored),
            Verdict::Conflict => match merged_text(inputs, resolve, path, decided)? {
                Merged::Clean(bytes) => {
                    note.outcome = Outcome::None;
                    note.change += ", merged as text";
                    Some(What::Bytes(bytes))
                }
                Merged::Conflict(side) => {
                    if side.is_some() {
                        note.outcome = Outcome::None;
                        note.change += ", resolved";
                    }
                    side.and_then(|s| entries[s].cloned()).map(What::Stored)
                }
            },
            _ => entries[A].cloned().map(What::Stored),
        };
        outputs.extend(what.map(|what| Output { path: path.to_owned(), what }));
        if verdict != Verdict::Unchanged {
            notes.push(note);
        }
    }
    Ok(())
}

/// The text merge of a file; or the side that is to be taken whole.
fn merged_text(
    inputs: &[Input; 3],
    resolve: Resolve,
    path: &str,
    decided: &[Decided],
) -> Result<Merged<Option<usize>>, RepoError> {
    let prefer = match resolve {
        Resolve::Ours => Some(A),
        Resolve::Theirs => Some(B),
        _ => None,
    };
    let mut texts = [None, None, None];
    for (input, text) in inputs.iter().zip(&mut texts) {
        let file = input.entry(path).filter(|e| e.kind == EntryKind::File && e.bytes <= text::MAX_MERGED);
        if let (Some(_), Some(file)) = (file, input.side.file(path)) {
            let mut bytes = vec![0; file.bytes as usize];
            file.read_at(0, &mut bytes)?;
            *text = String::from_utf8(bytes).ok();
        }
    }
    let [base, Some(a), Some(b)] = texts else { return Ok(Merged::Conflict(prefer)) };
    let size = |t: &Decided| t.length;
    let scope = path.strip_suffix(".safetensors.index.json");
    let total = scope.map(|s| decided.iter().filter(|t| t.scope == s).map(size).sum());
    let base = base.unwrap_or_default();
    Ok(match text::merge(path, [&base, &a, &b], prefer.map(|p| p == B), total) {
        Merged::Clean(bytes) => Merged::Clean(bytes),
        Merged::Conflict(_) => Merged::Conflict(prefer),
    })
}

/// A directory is empty only while nothing lies in it.
fn tidy(outputs: &mut Vec<Output>) -> Result<(), RepoError> {
    let paths: Vec<String> = outputs.iter().map(|o| o.path.clone()).collect();
    let holds = |dir: &str| paths.iter().any(|p| p.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')));
    let directory = |o: &Output| matches!(&o.what, What::Stored(e) if e.kind == EntryKind::Directory);
    if let Some(o) = outputs.iter().find(|o| !directory(o) && holds(&o.path)) {
        let path = printable(&o.path);
        return Err(RepoError::refused(format!("'{path}' is a file on one side and a directory on the other")));
    }
    outputs.retain(|o| !directory(o) || !holds(&o.path));
    Ok(())
}
