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
    let edge = |(i, &(from, to)): (usize, &(usize, usize))| Edge::new(from, to, kind(i));
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
        | |_|_|/| |
        |/| | | | |
        * | | | | | c
        | |_|_|/ /
        |/| | | |
        | * | | | d
        |  / / /
        | * | | e
        |  / /
        * | | x
        |/ /
        | * y
        * a",
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
        | | * e
        | |/|
        |/| |
        | |/
        | * d
        | |\\
        * | | c
        |\\| |
        | |\\|
        |/ /
        | * b
        * a",
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

/// Where each star's lanes lead to, by the lines alone; and whether one leads nowhere.
fn traced(lines: &[Line], from: usize) -> (HashSet<usize>, bool) {
    let rows: Vec<Vec<char>> = lines.iter().map(|l| l.drawing.chars().collect()).collect();
    let at = |row: usize, i: usize| rows.get(row).and_then(|r| r.get(i)).copied().unwrap_or(' ');
    let star = rows[from].iter().position(|c| *c == '*').unwrap();
    let mut lanes = HashSet::from([star / 2]);
    if let Some(dot) = rows[from].iter().position(|c| *c == '.') {
        lanes.extend(star / 2..=dot / 2);
    }
    let (mut found, mut loose) = (HashSet::new(), false);
    for (row, line) in lines.iter().enumerate().skip(from + 1) {
        let mut below = HashSet::new();
        for lane in lanes {
            let before = (below.len(), found.len());
            match at(row, 2 * lane) {
                '|' => drop(below.insert(lane)),
                '*' => drop(found.insert(line.node.unwrap())),
                _ => {}
            }
            if at(row, 2 * lane + 1) == '\\' {
                let level = (lane + 1..).take_while(|l| at(row, 2 * l + 1) == '_').count();
                below.insert(lane + 1 + level);
            }
            if lane > 0 && at(row, 2 * lane - 1) == '/' {
                let level = (1..lane).rev().take_while(|l| at(row, 2 * l - 1) == '_').count();
                below.insert(lane - 1 - level);
            }
            let ends = !"|*\\/".contains([at(row, 2 * lane), at(row, 2 * lane + 1)])
                && (lane == 0 || at(row, 2 * lane - 1) != '/');
            loose |= ends && before == (below.len(), found.len());
        }
        lanes = below;
    }
    (found, loose)
}

fn dag() -> impl Strategy<Value = Vec<Vec<usize>>> {
    prop::collection::vec(prop::collection::vec(1usize..12, 0..5), 0..40).prop_map(|steps| {
        let count = steps.len();
        let parents =
            |(n, steps): (usize, Vec<usize>)| steps.into_iter().map(|s| n + s).filter(|p| *p < count).collect();
        steps.into_iter().enumerate().map(parents).collect()
    })
}

proptest! {
    #[test]
    fn every_star_stands_once_in_order_and_its_lanes_lead_to_its_parents(parents in dag()) {
        let lines = draw(&parents);
        let stars: Vec<usize> = lines.iter().filter_map(|l| l.node).collect();
        prop_assert_eq!(stars, (0..parents.len()).collect::<Vec<_>>());
        for (row, line) in lines.iter().enumerate() {
            let count = line.drawing.matches('*').count();
            prop_assert_eq!(count, usize::from(line.node.is_some()));
            prop_assert!(line.drawing.chars().all(|c| " *|/\\_-.".contains(c)) && !line.drawing.ends_with(' '));
            let Some(n) = line.node else { continue };
            let (found, loose) = traced(&lines, row);
            prop_assert!(parents[n].iter().all(|p| found.contains(p)), "{n}: {found:?}\n{lines:#?}");
            prop_assert_eq!(found.is_empty(), parents[n].is_empty());
            prop_assert!(parents[n].is_empty() || !loose, "{n} leads nowhere\n{lines:#?}");
        }
    }

    #[test]
    fn any_graph_is_drawn(edges in prop::collection::vec((0usize..14, 0usize..14), 0..40)) {
        let g = graph(12, &edges); // Circles, loops, edges to nowhere.
        let mut order = g.newest_first();
        order.sort_unstable();
        prop_assert_eq!(order, (0..12).collect::<Vec<_>>());
        check_balance(&svg::svg(&g));
        dot::dot(&g);
        json::json(&g);
        check_layout(&g);
    }
}

/// Boxes and bends of a layer keep their distances, and edges lead to the right.
fn check_layout(g: &Graph) {
    let heights = Heights { node: 27.0, bend: 6.0 };
    let l = layout(g, heights);
    let half = |s: usize| if l.spots[s] == Spot::Bend { heights.bend } else { heights.node };
    let mut layers = vec![Vec::new(); l.layers];
    (0..l.spots.len()).for_each(|s| layers[l.layer[s]].push(s));
    for row in &mut layers {
        row.sort_by(|&a, &b| l.y[a].total_cmp(&l.y[b]));
        for pair in row.windows(2) {
            let apart = l.y[pair[1]] - l.y[pair[0]];
            assert!(apart + 1e-6 >= half(pair[0]) + half(pair[1]), "{pair:?} are {apart} apart");
        }
    }
    for (e, start) in g.sound_edges().zip(&l.starts) {
        assert!(start.is_none_or(|s| l.layer[s] < l.layer[e.to]));
    }
}

/// No two edges of a tree cross.
fn check_tree(g: &Graph, edges: &[(usize, usize)]) {
    let l = layout(g, Heights { node: 27.0, bend: 6.0 });
    for (i, a) in edges.iter().enumerate() {
        for b in edges[..i].iter().filter(|b| l.layer[b.0] == l.layer[a.0]) {
            let (left, right) = (l.y[a.0] - l.y[b.0], l.y[a.1] - l.y[b.1]);
            assert!(left == 0.0 || (left < 0.0) == (right < 0.0), "{a:?} crosses {b:?}");
        }
    }
}

/// Tags open and close in pairs; no bare ampersand.
fn check_balance(xml: &str) {
    let mut open = Vec::new();
    for part in xml.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).next().unwrap();
        match tag {
            t if t.starts_with('?') || t.ends_with('/') => {}
            t if t.starts_with('/') => assert_eq!(open.pop(), Some(&t[1..])),
            _ => open.push(name),
        }
        for entity in (tag.to_owned() + text).split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
            assert!(known.iter().any(|k| entity.starts_with(k)), "&{entity}");
        }
        assert!(!text.contains('>') && !part.contains(|c: char| c.is_control() && c != '\n'));
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

#[test]
fn hostile_names_stay_text() {
    let mut g = graph(3, &[(0, 1), (1, 2)]);
    for (n, bad) in ["\"];evil[x=\"", "</text><script>&'\"]]>\u{1}\u{ffff}\u{1b}[31m", "a\\\nb\\\" -> \\N\u{202e}"]
        .iter()
        .enumerate()
    {
        g.nodes[n].label = bad.to_string();
        g.nodes[n].model = bad.to_string();
    }
    let picture = svg::svg(&g);
    check_balance(&picture);
    assert!(!picture.contains("<script") && picture.contains("&lt;/text&gt;&lt;script&gt;&amp;"));
    let text = dot::dot(&g);
    for line in text.lines().filter(|l| l.contains("label=")) {
        // What is escaped opens and closes nothing.
        let bare = line.replace("\\\\", "").replace("\\\"", "");
        assert_eq!(bare.matches('"').count() % 2, 0, "{line}");
        assert!(line.ends_with("\"];"), "{line}");
    }
    assert!(text.contains(r#"label="\"];evil[x=\"\n12.1 MB of 433.0 MB""#), "{text}");
    assert!(text.contains(r#"label="a\\�b\\\" -> \\N"#), "{text}");
    let back: serde_json::Value = serde_json::from_str(&json::json(&g)).unwrap();
    assert_eq!(back["nodes"][1]["label"], g.nodes[1].label.as_str());
}

#[test]
fn every_node_and_edge_is_there() {
    let edges: Vec<(usize, usize)> = (0..13).map(|n| (n, n + 1)).chain((0..12).map(|n| (n, 13))).collect();
    let mut g = graph(14, &edges);
    g.nodes[3].removed = true;
    g.nodes[4].stored = None;
    g.nodes[5].label = "organisation/quite-a-long-model-name@v12".into();
    let (picture, text, value) = (svg::svg(&g), dot::dot(&g), json::value(&g));
    check_balance(&picture);
    assert_eq!(picture.matches("<g class=\"n").count(), 14);
    assert_eq!(picture.matches("<g class=\"n x\"").count(), 1);
    assert!(picture.contains("<title>organisation/quite-a-long-model-name@v12\n"));
    assert!(picture.contains(">organisation/q…odel-name@v12<"), "{picture}");
    assert!(picture.contains("? of 433.0 MB"));
    for e in &g.edges {
        let (a, b, kind) = (&g.nodes[e.from], &g.nodes[e.to], e.kind.as_str());
        assert!(picture.contains(&format!("<title>{} → {}: {kind}</title>", a.label, b.label)));
        let style = if e.kind == Kind::Version { "dashed" } else { "solid" };
        assert!(text.contains(&format!("\"{}\" -> \"{}\" [style={style}, color=\"{}\"", a.id, b.id, e.kind.colour())));
    }
    assert_eq!(text.matches(" -> ").count(), edges.len());
    assert_eq!((value["directed"].as_bool(), value["multigraph"].as_bool()), (Some(true), Some(true)));
    assert_eq!((value["nodes"].as_array().unwrap().len(), value["links"].as_array().unwrap().len()), (14, edges.len()));
    assert_eq!(value["links"][0]["relation"], "finetune");
    assert_eq!(value["links"][12]["kind"], "version");
    assert_eq!(value["links"][12]["source"], value["nodes"][12]["id"]);
    assert_eq!((&value["nodes"][3]["removed"], &value["nodes"][4]["stored_bytes"]), (&true.into(), &().into()));
    assert!(svg::svg(&Graph::default()).contains("no versions yet"));
}

#[test]
fn a_thousand_versions_are_laid_out_at_once() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let tree: Vec<_> = (1..1000).map(|n| (random(n), n)).collect();
    let chain: Vec<_> = (1..1000).map(|n| (n - 1, n)).chain((1..1000).map(|n| (0, n))).collect();
    let star: Vec<_> = (1..1000).map(|n| (0, n)).collect();
    let dense: Vec<_> = (1..1000).flat_map(|n| [(random(n), n), (random(n), n), (n - n.min(7), n)]).collect();
    for (what, edges) in [("tree", tree), ("chain", chain), ("star", star), ("dense", dense)] {
        let g = graph(1000, &edges);
        let start = std::time::Instant::now();
        let picture = svg::svg(&g);
        let took = start.elapsed();
        // Much less here; a busy machine gets some slack.
        assert!(took.as_secs_f64() < 2.0, "{what} took {took:?}");
        if what == "tree" {
            check_tree(&g, &edges);
        }
        assert_eq!(picture, svg::svg(&g));
        check_balance(&picture);
        check_layout(&g);
        assert_eq!(picture.matches("<g class=\"n").count(), 1000);
        if let Some(dir) = std::env::var_os("MGIT_TEST_PICTURES") {
            std::fs::write(std::path::Path::new(&dir).join(format!("{what}.svg")), picture).unwrap();
        }
    }
}

#[test]
fn sizes_read_well() {
    for (bytes, want) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (433_000_000, "433.0 MB")]
    {
        assert_eq!(size(bytes), want);
    }
    assert_eq!(size(u64::MAX), "18.4 EB");
}
