//! Where the boxes of a layered drawing stand: each node in the layer after its last parent's, ordered so that
//! few edges cross, and as near to its neighbours as the boxes allow.
//!
//! An edge over several layers is led by a *bend* in each layer between, which keeps its place free of boxes;
//! edges of one kind from one node share their bends. Time is about linear in nodes, edges and bends, and
//! bends are bounded: past [`MAX_BENDS`], edges go straight. Edges that would close a circle are left out.

use std::collections::{BTreeMap, BinaryHeap};

use super::{Edge, Graph, Kind};

/// Bends of a drawing.
const MAX_BENDS: usize = 60_000;
/// Times that each layer is ordered by its neighbours, and placed by them.
const SWEEPS: usize = 8;

/// What stands in a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spot {
    Box(usize),
    Bend,
}

/// A layout. `spots[i]` lies in layer `layer[i]`, its middle at height `y[i]`; the first are the nodes.
pub struct Layout {
    pub spots: Vec<Spot>,
    pub layer: Vec<usize>,
    pub y: Vec<f64>,
    pub layers: usize,
    /// The way of each bundle that bends: from its node over its bends.
    pub trunks: Vec<(Kind, Vec<usize>)>,
    /// Of each edge of the graph, the spot that its last piece starts from; `None` where it is not drawn.
    pub starts: Vec<Option<usize>>,
}

/// Room above and below a middle.
#[derive(Clone, Copy)]
pub struct Heights {
    pub node: f64,
    pub bend: f64,
}

/// Lays a graph out.
pub fn layout(graph: &Graph, heights: Heights) -> Layout {
    let edges: Vec<Edge> = graph.sound_edges().copied().collect();
    let (layer, drawn) = layer(graph.nodes.len(), &edges);
    let mut l = Layout {
        spots: (0..layer.len()).map(Spot::Box).collect(),
        layers: layer.iter().max().map_or(0, |m| m + 1),
        y: Vec::new(),
        layer,
        trunks: Vec::new(),
        starts: vec![None; edges.len()],
    };
    let mut links = bend(&mut l, &edges, &drawn);
    links.extend(edges.iter().enumerate().filter_map(|(i, e)| Some((l.starts[i]?, e.to))));
    let near = Near::of(l.spots.len(), &links);
    let rows = order(&l, &near);
    place(&mut l, &near, &rows, heights);
    l
}

/// Longest paths from the roots, in the order of places where there is a choice. And which edges agree.
fn layer(count: usize, edges: &[Edge]) -> (Vec<usize>, Vec<bool>) {
    let mut out = vec![Vec::new(); count];
    let mut waits = vec![0; count];
    for e in edges {
        out[e.from].push(e.to);
        waits[e.to] += 1;
    }
    let mut layer = vec![0; count];
    let mut ready: BinaryHeap<_> = (0..count).filter(|&n| waits[n] == 0).map(std::cmp::Reverse).collect();
    let mut done = vec![false; count];
    while let Some(std::cmp::Reverse(n)) = ready.pop() {
        done[n] = true;
        for &to in &out[n] {
            layer[to] = layer[to].max(layer[n] + 1);
            waits[to] -= 1;
            if waits[to] == 0 {
                ready.push(std::cmp::Reverse(to));
            }
        }
    }
    let drawn = edges.iter().map(|e| done[e.to] && layer[e.from] < layer[e.to]).collect();
    (layer, drawn)
}

/// Adds the bends of long edges; returns the links from spot to spot that they make.
fn bend(l: &mut Layout, edges: &[Edge], drawn: &[bool]) -> Vec<(usize, usize)> {
    let mut bundles = BTreeMap::<(usize, Kind), Vec<usize>>::new();
    for (i, e) in edges.iter().enumerate().filter(|(i, _)| drawn[*i]) {
        bundles.entry((e.from, e.kind)).or_default().push(i);
    }
    let mut links = Vec::new();
    let mut left = MAX_BENDS;
    for ((from, kind), members) in bundles {
        let last = members.iter().map(|&i| l.layer[edges[i].to]).max().unwrap_or(0);
        let bends = last.saturating_sub(l.layer[from] + 1);
        let mut way = vec![from];
        if bends <= left {
            left -= bends;
            for layer in l.layer[from] + 1..last {
                links.push((way[way.len() - 1], l.spots.len()));
                way.push(l.spots.len());
                l.spots.push(Spot::Bend);
                l.layer.push(layer);
            }
        }
        for &i in &members {
            let steps = l.layer[edges[i].to] - l.layer[from] - 1;
            l.starts[i] = Some(way[steps.min(way.len() - 1)]);
        }
        if way.len() > 1 {
            l.trunks.push((kind, way));
        }
    }
    links
}

/// The neighbours of each spot, in the layers before and after.
struct Near {
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
}

impl Near {
    fn of(count: usize, links: &[(usize, usize)]) -> Near {
        let mut near = Near { before: vec![Vec::new(); count], after: vec![Vec::new(); count] };
        for &(a, b) in links {
            near.after[a].push(b);
            near.before[b].push(a);
        }
        near
    }
}

/// The spots of each layer from top to bottom: the best of the orders tried.
fn order(l: &Layout, near: &Near) -> Vec<Vec<usize>> {
    let mut rows = first_order(l, near);
    let mut rank = vec![0; l.spots.len()];
    let rank_row = |row: &[usize], rank: &mut [usize]| row.iter().enumerate().for_each(|(i, &s)| rank[s] = i);
    rows.iter().for_each(|row| rank_row(row, &mut rank));
    let mut best = (crossings(&rows, near, &rank), rows.clone());
    for sweep in 0..SWEEPS {
        if best.0 == 0 {
            break; // As every tree is, from the start.
        }
        let right = sweep % 2 == 0;
        let neighbours = if right { &near.before } else { &near.after };
        for i in 0..rows.len() {
            let row = if right { i } else { rows.len() - 1 - i };
            let row = &mut rows[row];
            let mean = |s: usize| match neighbours[s].len() {
                0 => rank[s] as f64,
                n => neighbours[s].iter().map(|&o| rank[o] as f64).sum::<f64>() / n as f64,
            };
            *row = sorted(row.iter().map(|&s| (mean(s), s)).collect());
            rank_row(row, &mut rank);
        }
        let count = crossings(&rows, near, &rank);
        if count < best.0 {
            best = (count, rows.clone());
        }
    }
    best.1
}

/// Pairs of links between neighbouring layers that cross: for each, those before it that end further down,
/// counted in a Fenwick tree.
fn crossings(rows: &[Vec<usize>], near: &Near, rank: &[usize]) -> u64 {
    let mut sum = 0;
    for pair in rows.windows(2) {
        let mut tree = vec![0u64; pair[1].len() + 1];
        let mut seen = 0;
        for &s in &pair[0] {
            // Those past the next layer go straight, being too many to bend.
            let ends = || near.after[s].iter().filter(|&&o| pair[1].get(rank[o]) == Some(&o)).map(|&o| rank[o] + 1);
            for end in ends() {
                let mut at = end;
                let mut above = 0;
                while at > 0 {
                    above += tree[at];
                    at &= at - 1;
                }
                sum += seen - above;
            }
            for mut at in ends() {
                seen += 1;
                while at < tree.len() {
                    tree[at] += 1;
                    at += at & at.wrapping_neg();
                }
            }
        }
    }
    sum
}

/// As a walk from the roots, depth first, comes to them: families stay together.
fn first_order(l: &Layout, near: &Near) -> Vec<Vec<usize>> {
    let mut rows = vec![Vec::new(); l.layers];
    let mut seen = vec![false; l.spots.len()];
    for root in 0..l.spots.len() {
        let mut stack = if near.before[root].is_empty() { vec![root] } else { continue };
        while let Some(s) = stack.pop() {
            if !std::mem::replace(&mut seen[s], true) {
                rows[l.layer[s]].push(s);
                stack.extend(near.after[s].iter().rev());
            }
        }
    }
    rows
}

/// Stable, so that what has no wish keeps its place among equals.
fn sorted(mut wish: Vec<(f64, usize)>) -> Vec<usize> {
    wish.sort_by(|a, b| a.0.total_cmp(&b.0));
    wish.into_iter().map(|(_, s)| s).collect()
}

fn mean(spots: &[usize], of: &[f64], otherwise: f64) -> f64 {
    match spots.len() {
        0 => otherwise,
        n => spots.iter().map(|&s| of[s]).sum::<f64>() / n as f64,
    }
}

/// Heights: each layer as near to its neighbours as its order and the boxes allow.
fn place(l: &mut Layout, near: &Near, rows: &[Vec<usize>], heights: Heights) {
    let half: Vec<f64> = l.spots.iter().map(|s| if *s == Spot::Bend { heights.bend } else { heights.node }).collect();
    let mut y = vec![0.0; l.spots.len()];
    for row in rows {
        let mut at = 0.0;
        for &s in row {
            y[s] = at + half[s];
            at += 2.0 * half[s];
        }
    }
    for sweep in 0..=SWEEPS {
        let right = sweep % 2 == 0;
        for i in 0..rows.len() {
            let row = if right { &rows[i] } else { &rows[rows.len() - 1 - i] };
            let toward = if right { &near.before } else { &near.after };
            let wish: Vec<f64> = row.iter().map(|&s| mean(&toward[s], &y, y[s])).collect();
            settle(row, &wish, &half, &mut y);
        }
    }
    let top = (0..y.len()).map(|s| y[s] - half[s]).fold(f64::INFINITY, f64::min);
    y.iter_mut().for_each(|y| *y -= top);
    l.y = y;
}

/// The heights nearest to the wishes (least squares) that keep the order and the distances: neighbours that get
/// in each other's way move together to their mean, until none do.
fn settle(row: &[usize], wish: &[f64], half: &[f64], y: &mut [f64]) {
    // (sum of wishes, count), each wish less the room that those above it need.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    let mut offsets = Vec::with_capacity(row.len());
    let mut used = 0.0;
    for (&s, wish) in row.iter().zip(wish) {
        let offset = used + half[s];
        used += 2.0 * half[s];
        offsets.push(offset);
        groups.push((wish - offset, 1));
        while let [.., (a, n), (b, m)] = groups[..] {
            if a / n as f64 <= b / m as f64 {
                break;
            }
            groups.truncate(groups.len() - 2);
            groups.push((a + b, n + m));
        }
    }
    let means = groups.iter().flat_map(|&(sum, n)| std::iter::repeat_n(sum / n as f64, n));
    for ((&s, offset), mean) in row.iter().zip(offsets).zip(means) {
        y[s] = mean + offset;
    }
}
