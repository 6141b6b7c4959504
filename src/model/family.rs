//! The lineage as places: which model stands below which, which versions have a card, and what links to what.
//!
//! A pure function of a [`Graph`], whatever that holds: names that make no sense, edges that lead nowhere and circles
//! of versions are passed over, never followed for ever. All versions are named by their places in the graph.
//! - A version *stands* when it lives or something living descends from it; a model stands when a version of it does.
//! - Each model that stands has one real place in the tree: below the model that its oldest standing version came
//!   from, and at the top where that is none, would close a circle, lies [`MAX_DEPTH`] deep, or makes too long a path.
//!   Every other model that a standing version of it came from holds a link to it.
//! - Versions that stand have a card, and removed ones that descend from a living one. All that a card names has one.
//!
//! Building it takes O(n log n); what lies above and below a version is looked for when it is asked.

use std::collections::{HashMap, HashSet, VecDeque};

use jiff::Timestamp;

use super::graph::{Graph, Kind};
use super::id::Id;
use super::name::{ModelName, VersionName};

#[cfg(test)]
mod tests;

/// Models above one another in the tree.
pub const MAX_DEPTH: usize = 32;
/// Ancestors or descendants of a version that are named, the nearest.
pub const MAX_KIN: usize = 1000;
/// Bytes of a place's path: a link from one to another must fit what a symlink may hold, 4,095.
const MAX_PATH: usize = 2000;

/// A version that has a card.
#[derive(Debug)]
pub struct Card {
    /// Its model, by place in [`Family::models`].
    pub model: usize,
    /// What it is called among its model's cards: the version's name. Of several versions with one name, the living or
    /// newest has it; the others' names end in `~` and the beginning of their ids.
    pub name: String,
    /// Versions in other models that it came from, each once, in the order of its edges.
    pub parents: Vec<usize>,
    pub children: Vec<usize>,
    pub previous: Option<usize>,
    /// The oldest that follows it.
    pub next: Option<usize>,
    /// By edges of both kinds.
    above: Vec<usize>,
    below: Vec<usize>,
}

/// A model that has a card.
#[derive(Debug)]
pub struct Model {
    pub name: ModelName,
    /// Its directory's name.
    pub dir: String,
    /// Its cards in commit order.
    pub cards: Vec<usize>,
    /// Of its newest version.
    pub time: Timestamp,
    /// Where it stands in the tree, if it does.
    pub spot: Option<Spot>,
}

/// A model's real place in the tree.
#[derive(Debug)]
pub struct Spot {
    /// The model that it stands below.
    pub parent: Option<usize>,
    /// 1 at the top.
    pub depth: usize,
    /// From the top of the tree, `base/tuned`.
    pub path: String,
    /// A hash of the path.
    pub key: Id,
    /// Models that stand below it, by name.
    pub children: Vec<usize>,
    /// Models that it links to, by name.
    pub links: Vec<usize>,
    /// Its living versions in commit order.
    pub living: Vec<usize>,
}

/// All places.
#[derive(Debug, Default)]
pub struct Family {
    pub models: Vec<Model>,
    /// Models at the top of the tree, by name.
    pub roots: Vec<usize>,
    /// By place in the graph.
    cards: Vec<Option<Card>>,
    by_dir: HashMap<String, usize>,
    by_key: HashMap<Id, usize>,
    by_id: HashMap<Id, usize>,
    by_label: HashMap<String, usize>,
}

impl Family {
    pub fn new(graph: &Graph) -> Family {
        let names: Vec<_> = graph.nodes.iter().map(|n| names(&n.model, &n.version)).collect();
        let edges = Edges::new(graph, &names);
        let standing = edges.reach(graph, &edges.above);
        let below = edges.reach(graph, &edges.below);
        let mut family = Family::default();
        family.cards.resize_with(graph.nodes.len(), || None);
        for (n, name) in names.iter().enumerate() {
            if let Some((model, version)) = name.as_ref().filter(|_| standing[n] || below[n]) {
                family.add(graph, n, model, version);
            }
        }
        family.name_cards(graph);
        family.connect(&edges);
        family.stand(graph, &standing);
        family
    }

    fn add(&mut self, graph: &Graph, n: usize, name: &ModelName, version: &VersionName) {
        let (dir, time) = (name.dir_name(), graph.nodes[n].created);
        let next = self.models.len();
        let model = *self.by_dir.entry(dir.clone()).or_insert(next);
        if model == next {
            self.models.push(Model { name: name.clone(), dir, cards: vec![], time, spot: None });
        }
        let m = &mut self.models[model];
        m.cards.push(n);
        m.time = m.time.max(time);
        let (parents, children, above, below) = Default::default();
        let name = version.to_string();
        self.cards[n] = Some(Card { model, name, parents, children, previous: None, next: None, above, below });
        self.by_id.insert(graph.nodes[n].id, n);
    }

    /// Gives each card a name of its own: the living first, then the newest.
    fn name_cards(&mut self, graph: &Graph) {
        let mut order: Vec<usize> = (0..self.cards.len()).rev().filter(|&n| self.cards[n].is_some()).collect();
        order.sort_by_key(|&n| graph.nodes[n].removed);
        for n in order {
            let id = graph.nodes[n].id;
            let Some(card) = &mut self.cards[n] else { continue };
            let dir = &self.models[card.model].dir;
            if self.by_label.contains_key(&format!("{dir}@{}", card.name)) {
                card.name = format!("{}~{}", card.name, id.short());
            }
            let label = format!("{dir}@{}", card.name);
            if self.by_label.contains_key(&label) {
                card.name = format!("{}~{id}~{n}", card.name); // two ids that begin alike
            }
            self.by_label.insert(format!("{dir}@{}", card.name), n);
        }
    }

    /// Writes the edges between cards into them.
    fn connect(&mut self, edges: &Edges) {
        for &(from, to, kind) in &edges.all {
            if self.cards[from].is_none() || self.cards[to].is_none() {
                continue;
            }
            if let Some(older) = &mut self.cards[from] {
                older.below.push(to);
                match kind {
                    Kind::Version => older.next = Some(older.next.map_or(to, |n| n.min(to))),
                    Kind::Provenance(_) => older.children.push(to),
                }
            }
            if let Some(newer) = &mut self.cards[to] {
                newer.above.push(from);
                match kind {
                    Kind::Version => newer.previous = newer.previous.or(Some(from)),
                    Kind::Provenance(_) => newer.parents.push(from),
                }
            }
        }
        for card in self.cards.iter_mut().flatten() {
            for list in [&mut card.parents, &mut card.children, &mut card.above, &mut card.below] {
                let mut seen = HashSet::new();
                list.retain(|n| seen.insert(*n));
            }
            card.children.sort_unstable();
        }
    }

    /// Finds each standing model's place in the tree.
    fn stand(&mut self, graph: &Graph, standing: &[bool]) {
        let foreign = |family: &Family, n: usize| -> Vec<usize> {
            let Some(card) = family.card(n).filter(|_| standing[n]) else { return vec![] };
            let models = card.parents.iter().filter_map(|&p| Some(family.card(p)?.model));
            models.filter(|m| *m != card.model).collect()
        };
        let oldest: Vec<Option<usize>> =
            self.models.iter().map(|m| m.cards.iter().copied().find(|&n| standing[n])).collect();
        let mut parent: Vec<Option<usize>> =
            oldest.iter().map(|n| n.and_then(|n| foreign(self, n).first().copied())).collect();
        break_circles(&mut parent, &oldest);
        self.place(&mut parent, &oldest, graph);
        for n in 0..self.cards.len() {
            let Some(child) = self.card(n).map(|c| c.model) else { continue };
            for from in foreign(self, n) {
                if let Some(spot) = self.models[from].spot.as_mut().filter(|_| parent[child] != Some(from)) {
                    spot.links.push(child);
                }
            }
        }
        self.sort();
    }

    /// Makes the spots from the top down. A model that would lie too deep goes to the top.
    fn place(&mut self, parent: &mut [Option<usize>], oldest: &[Option<usize>], graph: &Graph) {
        let mut children = vec![Vec::new(); parent.len()];
        let mut queue = VecDeque::new();
        for m in (0..parent.len()).filter(|&m| oldest[m].is_some()) {
            match parent[m] {
                Some(p) => children[p].push(m),
                None => queue.push_back(m),
            }
        }
        while let Some(m) = queue.pop_front() {
            let above = parent[m].and_then(|p| self.models[p].spot.as_ref());
            let mut spot = self.spot_below(above, m);
            spot.parent = parent[m];
            spot.living = self.models[m].cards.iter().copied().filter(|&n| !graph.nodes[n].removed).collect();
            for c in std::mem::take(&mut children[m]) {
                let length = spot.path.len() + 1 + self.models[c].dir.len();
                match spot.depth < MAX_DEPTH && length <= MAX_PATH {
                    true => spot.children.push(c),
                    false => parent[c] = None,
                }
                queue.push_back(c);
            }
            if parent[m].is_none() {
                self.roots.push(m);
            }
            self.by_key.insert(spot.key, m);
            self.models[m].spot = Some(spot);
        }
    }

    fn spot_below(&self, above: Option<&Spot>, m: usize) -> Spot {
        let dir = &self.models[m].dir;
        let (depth, path) = match above {
            Some(above) => (above.depth + 1, format!("{}/{dir}", above.path)),
            None => (1, dir.clone()),
        };
        let key = Id::of(path.as_bytes());
        Spot { parent: None, depth, path, key, children: vec![], links: vec![], living: vec![] }
    }

    fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        order.sort_by(|a, b| self.models[*a].dir.cmp(&self.models[*b].dir));
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &m)| rank[m] = at);
        let by_name = |list: &mut Vec<usize>| {
            list.sort_unstable_by_key(|&m| rank[m]);
            list.dedup();
        };
        by_name(&mut self.roots);
        for spot in self.models.iter_mut().filter_map(|m| m.spot.as_mut()) {
            by_name(&mut spot.children);
            by_name(&mut spot.links);
        }
    }

    /// The card of a version, by its place in the graph.
    pub fn card(&self, n: usize) -> Option<&Card> {
        self.cards.get(n)?.as_ref()
    }

    /// The version with this id, if it has a card.
    pub fn by_id(&self, id: &Id) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The version with this card: `acme--bert@v1`.
    pub fn by_label(&self, label: &str) -> Option<usize> {
        self.by_label.get(label).copied()
    }

    /// The model with this directory, if it has a card.
    pub fn by_dir(&self, dir: &str) -> Option<usize> {
        self.by_dir.get(dir).copied()
    }

    /// The model that stands at the path with this hash.
    pub fn by_key(&self, key: &Id) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// `acme--bert@v1`.
    pub fn label(&self, card: &Card) -> String {
        format!("{}@{}", self.models[card.model].dir, card.name)
    }

    /// The nearest versions that `n` comes from, nearest first, by edges of both kinds.
    pub fn ancestors(&self, n: usize) -> Vec<usize> {
        self.nearest(n, |card| &card.above)
    }

    /// The nearest versions that come from `n`, likewise.
    pub fn descendants(&self, n: usize) -> Vec<usize> {
        self.nearest(n, |card| &card.below)
    }

    fn nearest(&self, start: usize, next: impl Fn(&Card) -> &Vec<usize>) -> Vec<usize> {
        let mut order = vec![start];
        let mut seen = HashSet::from([start]);
        let mut at = 0;
        while at < order.len() && order.len() <= MAX_KIN {
            if let Some(card) = self.card(order[at]) {
                order.extend(next(card).iter().filter(|n| seen.insert(**n)));
            }
            at += 1;
        }
        order.truncate(MAX_KIN + 1);
        order.remove(0);
        order
    }
}

/// A version's names, where they are such.
fn names(model: &str, version: &str) -> Option<(ModelName, VersionName)> {
    Some((model.parse().ok()?, version.parse().ok()?))
}

/// The edges between versions whose names make sense.
struct Edges {
    /// From the older to the newer, in the graph's order.
    all: Vec<(usize, usize, Kind)>,
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
}

impl Edges {
    fn new(graph: &Graph, names: &[Option<(ModelName, VersionName)>]) -> Edges {
        let named = |n: usize| names.get(n).is_some_and(Option::is_some);
        let sound = graph.edges.iter().filter(|e| e.from != e.to && named(e.from) && named(e.to));
        let all: Vec<_> = sound.map(|e| (e.from, e.to, e.kind)).collect();
        let (mut above, mut below) = (vec![Vec::new(); names.len()], vec![Vec::new(); names.len()]);
        for &(from, to, _) in &all {
            above[to].push(from);
            below[from].push(to);
        }
        Edges { all, above, below }
    }

    /// The living versions, and all that these edges lead to from them.
    fn reach(&self, graph: &Graph, next: &[Vec<usize>]) -> Vec<bool> {
        let mut reached: Vec<bool> = graph.nodes.iter().map(|n| !n.removed).collect();
        let mut queue: Vec<usize> = (0..reached.len()).filter(|&n| reached[n]).collect();
        while let Some(n) = queue.pop() {
            queue.extend(next[n].iter().filter(|&&p| !std::mem::replace(&mut reached[p], true)));
        }
        reached
    }
}

/// Takes the parent from one model of each circle: the one with the oldest version.
fn break_circles(parent: &mut [Option<usize>], oldest: &[Option<usize>]) {
    let mut walked_in = vec![usize::MAX; parent.len()];
    for start in 0..parent.len() {
        let mut at = start;
        while walked_in[at] == usize::MAX {
            walked_in[at] = start;
            at = parent[at].unwrap_or(at);
        }
        if walked_in[at] != start || parent[at].is_none() {
            continue; // the way ends at a root, or joins one that was walked before
        }
        let circle = std::iter::successors(parent[at], |&m| parent[m].filter(|_| m != at));
        if let Some(first) = circle.min_by_key(|&m| oldest[m]) {
            parent[first] = None;
        }
    }
}
