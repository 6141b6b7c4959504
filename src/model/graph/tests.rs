//! Drawings pinned, and what must hold for any graph.

use std::collections::HashSet;

use proptest::prelude::*;

use super::layers::{Heights, Spot, layout};
use super::text::{Line, draw};
use super::*;

fn node(n: usize) -> Node {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    Node {
        id: Id(id),
        label: format!("m{n}@v1"),
        model: format!("m{n}"),
        version: "v1".into(),
        created: Timestamp::UNIX_EPOCH,
        logical: 433_000_000,
        stored: Some(12_100_000),
        removed: false,
    }
}

fn graph(count: usize, edges: &[(usize, usize)]) -> Graph {
    let kind = |i: usize| match i % 13 {
        12 => Kind::Version,
        r => Kind::Provenance(Relation::ALL[r]),
    };
    let edge = |(i, &(from, to)): (usize, &(usize, usize))| Edge { from, to, kind: kind(i) };
    Graph { nodes: (0..count).map(node).collect(), edges: edges.iter().enumerate().map(edge).collect() }
}

/// The drawing of letters, newest first, each with its parents.
fn drawn(nodes: &[(char, &str)]) -> String {
    let place = |c: char| nodes.iter().position(|(n, _)| *n == c).unwrap();
    let parents: Vec<Vec<usize>> = nodes.iter().map(|(_, p)| p.chars().map(place).collect()).collect();
    let line = |l: Line| match l.node {
        Some(n) => format!("{} {}\n", l.drawing, nodes[n].0),
        None => l.drawing + "\n",
    };
    draw(&parents).into_iter().map(line).collect()
}

/// Text without the margin that its first line has.
fn flush(s: &str) -> String {
    let s = s.trim_start_matches('\n');
    let margin = s.len() - s.trim_start_matches(' ').len();
    s.lines().map(|l| format!("{}\n", l.get(margin..).unwrap_or(""))).collect::<String>().trim_end().to_owned() + "\n"
}

#[track_caller]
fn check(nodes: &[(char, &str)], want: &str) {
    let got = drawn(nodes);
    assert_eq!(got, flush(want), "\n{got}");
}

#[test]
fn a_chain() {
    check(
        &[('c', "b"), ('b', "a"), ('a', "")],
        "
        * c
        * b
        * a",
    );
}

#[test]
fn a_fork() {
    check(
        &[('d', "a"), ('c', "a"), ('b', "a"), ('a', "")],
        "
        * d
        | * c
        |/
        | * b
        |/
        * a",
    );
}

#[test]
fn a_merge_of_two() {
    check(
        &[('d', "bc"), ('c', "a"), ('b', "a"), ('a', "")],
        "
        * d
        |\\
        | * c
        * | b
        |/
        * a",
    );
}

#[test]
fn a_merge_of_three() {
    check(
        &[('e', "bcd"), ('d', "a"), ('c', "a"), ('b', "a"), ('a', "")],
        "
        *-. e
        |\\ \\
        | | * d
        | * | c
        | |/
        * | b
        |/
        * a",
    );
}

#[test]
fn a_merge_of_four_beside_another_line() {
    check(
        &[('z', "y"), ('h', "cdef"), ('y', "a"), ('f', "a"), ('e', "a"), ('d', "a"), ('c', "a"), ('a', "")],
        "
        * z
        | *---. h
        | |\\ \\ \\
        * | | | | y
        | | | | * f
        | |_|_|/
        |/| | |
        | | | * e
        | |_|/
        |/| |
        | | * d
        | |/
        |/|
        | * c
        |/
        * a",
    );
}

#[test]
fn a_merge_makes_room_left_of_another_line() {
    check(
        &[('h', "cde"), ('z', "a"), ('g', "cxy"), ('c', "x"), ('d', ""), ('e', ""), ('x', "a"), ('y', ""), ('a', "")],
        "
        *-. h
        |\\ \\
        | | | * z
        | | | | * g
        | | | | |\\
        | |_|_|_|/|
        |/| | | | |
        * | | | | | c",
    );
}

#[test]
fn two_roots() {
    check(
        &[('d', "c"), ('c', ""), ('b', "a"), ('a', "")],
        "
        * d
        * c

        * b
        * a",
    );
    check(
        &[('d', "a"), ('c', "b"), ('b', ""), ('a', "")],
        "
        * d
        | * c
        | * b
        * a",
    );
    check(
        &[('d', "b"), ('c', "a"), ('b', ""), ('a', "")],
        "
        * d
        | * c
        * | b
         /
        * a",
    );
}

#[test]
fn a_criss_cross() {
    check(
        &[('f', "cd"), ('e', "dc"), ('d', "ab"), ('c', "ab"), ('b', ""), ('a', "")],
        "
        * f
        |\\
        | * e",
    );
}

#[test]
fn removed_nodes_fill_the_gap() {
    let mut g = graph(5, &[(0, 1), (1, 2), (2, 3), (0, 4)]);
    for gone in [1, 2, 4] {
        g.nodes[gone].removed = true;
    }
    let living = g.above(|n| !n.removed);
    assert_eq!(living.nodes.iter().map(|n| n.label.as_str()).collect::<Vec<_>>(), ["m0@v1", "m1@v1", "m2@v1", "m3@v1"]);
    assert_eq!(living.newest_first(), [3, 2, 1, 0]);
    assert_eq!(living.edges, g.edges[..3]);
}

#[test]
fn lines_of_history_do_not_mix() {
    let g = graph(6, &[(0, 2), (1, 3), (2, 4), (3, 5)]);
    assert_eq!(g.newest_first(), [5, 3, 1, 4, 2, 0]);
    let circle = graph(3, &[(0, 1), (1, 0), (1, 2)]);
    assert_eq!(circle.newest_first(), [2, 1, 0], "each is there");
}
