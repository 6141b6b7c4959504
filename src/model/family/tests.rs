//! Families of chosen and of random graphs.

use super::super::graph::{Edge, Node};
use super::super::record::Relation;
use super::*;
use proptest::prelude::*;

const MADE: Kind = Kind::Provenance(Relation::Finetune);

/// `model@version` in commit order, `-` before the removed ones; edges (older, newer), of a kind that the models say.
fn graph(names: &[&str], edges: &[(usize, usize)]) -> Graph {
    let node = |(n, name): (usize, &&str)| {
        let (model, version) = name.trim_start_matches('-').split_once('@').unwrap();
        Node {
            id: Id::of(&n.to_le_bytes()),
            label: format!("{model}@{version}"),
            model: model.to_owned(),
            version: version.to_owned(),
            created: Timestamp::from_second(n as i64).unwrap(),
            logical: 1,
            stored: None,
            removed: name.starts_with('-'),
        }
    };
    let nodes: Vec<Node> = names.iter().enumerate().map(node).collect();
    let same = |a: usize, b: usize| nodes.get(a).map(|n| &n.model) == nodes.get(b).map(|n| &n.model);
    let kind = |from, to| if same(from, to) { Kind::Version } else { MADE };
    let edges = edges.iter().map(|&(from, to)| Edge::new(from, to, kind(from, to))).collect();
    Graph { nodes, edges }
}

/// The tree as lines: real places, links as `place -> target`, versions as `place@v`.
fn tree(f: &Family, g: &Graph) -> Vec<String> {
    let mut out = vec![];
    for m in f.models.iter().filter_map(|m| m.spot.as_ref()) {
        out.push(m.path.clone());
        out.extend(m.living.iter().map(|&n| format!("{}/@{}", m.path, g.nodes[n].version)));
        let path = |l: usize| &f.models[l].spot.as_ref().unwrap().path;
        out.extend(m.links.iter().map(|&l| format!("{}/{} -> {}", m.path, f.models[l].dir, path(l))));
    }
    out.sort();
    out
}

fn labels(f: &Family, list: &[usize]) -> Vec<String> {
    list.iter().map(|&n| f.label(f.card(n).unwrap())).collect()
}

#[test]
fn a_model_stands_below_what_its_oldest_version_came_from() {
    let g = graph(&["base@v1", "ft@v1", "ft@v2", "other@v1", "acme/mix@v1"], &[(0, 1), (1, 2), (1, 4), (3, 4), (0, 4)]);
    let f = Family::new(&g);
    let want = [
        "base",
        "base/@v1",
        "base/acme--mix -> base/ft/acme--mix",
        "base/ft",
        "base/ft/@v1",
        "base/ft/@v2",
        "base/ft/acme--mix",
        "base/ft/acme--mix/@v1",
        "other",
        "other/@v1",
        "other/acme--mix -> base/ft/acme--mix",
    ];
    assert_eq!(tree(&f, &g), want);
    let mix = f.by_label("acme--mix@v1").unwrap();
    assert_eq!(labels(&f, &f.card(mix).unwrap().parents), ["ft@v1", "other@v1", "base@v1"]);
    assert_eq!(labels(&f, &f.ancestors(mix)), ["ft@v1", "other@v1", "base@v1"]);
    assert_eq!(labels(&f, &f.descendants(0)), ["ft@v1", "acme--mix@v1", "ft@v2"]);
    let v1 = f.card(1).unwrap();
    assert_eq!((v1.previous, v1.next, v1.children.as_slice()), (None, Some(2), &[4][..]));
}

#[test]
fn a_circle_of_models_is_a_link() {
    let g = graph(&["a@v1", "b@v1", "a@v2"], &[(0, 1), (1, 2), (0, 2)]);
    assert_eq!(tree(&Family::new(&g), &g), ["a", "a/@v1", "a/@v2", "a/b", "a/b/@v1", "a/b/a -> a"]);
    // Each of two models' oldest versions came from the other; the edge was added later.
    let g = graph(&["a@v1", "b@v1", "b@v2"], &[(0, 1), (2, 0)]);
    assert_eq!(tree(&Family::new(&g), &g), ["a", "a/@v1", "a/b", "a/b/@v1", "a/b/@v2", "a/b/a -> a"]);
}

#[test]
fn what_was_removed_stands_while_something_living_descends_from_it() {
    let g = graph(&["-a@v1", "-b@v1", "c@v1", "-d@v1", "-e@v1"], &[(0, 1), (1, 2), (2, 3), (0, 4)]);
    let f = Family::new(&g);
    assert_eq!(tree(&f, &g), ["a", "a/b", "a/b/c", "a/b/c/@v1"]);
    assert!(f.card(3).is_some(), "what descends from the living has a card");
    assert!(f.card(4).is_none() && f.by_dir("e").is_none());
    assert_eq!(labels(&f, &f.descendants(0)), ["b@v1", "c@v1", "d@v1"]);
    assert!(f.card(0).unwrap().children == [1]);
}

#[test]
fn names_given_twice_are_told_apart() {
    let g = graph(&["-a@v1", "-a@v1", "a@v1", "b@v1"], &[(0, 3), (1, 3)]);
    let f = Family::new(&g);
    assert_eq!(f.by_label("a@v1"), Some(2), "the living one");
    for n in [0, 1] {
        assert_eq!(f.card(n).unwrap().name, format!("v1~{}", g.nodes[n].id.short()));
    }
    assert_eq!(labels(&f, &f.card(3).unwrap().parents).len(), 2);
}

#[test]
fn long_lines_go_on_at_the_top() {
    let names: Vec<String> = (0..100).map(|n| format!("m{n}@v1")).collect();
    let chain: Vec<(usize, usize)> = (1..100).map(|n| (n - 1, n)).collect();
    let g = graph(&names.iter().map(String::as_str).collect::<Vec<_>>(), &chain);
    let f = Family::new(&g);
    let spot = |n: usize| f.models[n].spot.as_ref().unwrap();
    assert_eq!((spot(31).depth, spot(32).depth, spot(99).depth), (32, 1, 4));
    assert_eq!((spot(31).links.as_slice(), spot(31).children.len()), (&[32][..], 0));
    let long: Vec<String> = (0..30).map(|n| format!("{n:a>80}/{n:b>80}@v1")).collect();
    let g = graph(&long.iter().map(String::as_str).collect::<Vec<_>>(), &chain[..29]);
    let f = Family::new(&g);
    assert!(f.models.iter().all(|m| m.spot.as_ref().unwrap().path.len() <= MAX_PATH) && f.roots.len() == 3);
}

#[test]
fn a_thousand_of_many_and_a_large_family_quickly() {
    let names: Vec<String> = (0..50_000).map(|n| format!("m{}@v{}", n % 100, n / 100)).collect();
    let edges: Vec<(usize, usize)> = (1..50_000).flat_map(|n| [(n / 2, n), (n - 1, n)]).collect();
    let g = graph(&names.iter().map(String::as_str).collect::<Vec<_>>(), &edges);
    let start = std::time::Instant::now();
    let f = Family::new(&g);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    assert_eq!((f.descendants(0).len(), f.ancestors(49_999).len()), (MAX_KIN, MAX_KIN));
    let nearest = f.descendants(0);
    assert_eq!(nearest[..2], [1, 2]);
}

#[test]
fn nonsense_is_passed_over() {
    let mut g = graph(&["a@v1", "b@v1", "a/b/c@v1", "../x@v1", "a@latest"], &[(0, 1), (1, 0), (0, 0), (7, 0), (0, 9)]);
    g.edges.push(Edge::new(2, 1, MADE));
    let f = Family::new(&g);
    assert_eq!(tree(&f, &g), ["a", "a/@v1", "a/b", "a/b/@v1", "a/b/a -> a"]);
    assert_eq!((f.ancestors(0), f.descendants(0), f.ancestors(77)), (vec![1], vec![1], vec![]));
    assert!(f.card(2).is_none() && f.card(99).is_none());
    assert!(Family::new(&Graph::default()).roots.is_empty());
}

fn any_graph() -> impl Strategy<Value = Graph> {
    let nodes = prop::collection::vec((0..12usize, any::<bool>()), 1..60);
    let edges = prop::collection::vec((0..62usize, 0..62usize), 0..150);
    (nodes, edges).prop_map(|(nodes, edges)| {
        let name = |(n, (model, removed)): (usize, &(usize, bool))| {
            format!("{}m{model}@v{}", if *removed { "-" } else { "" }, n / 2)
        };
        let names: Vec<String> = nodes.iter().enumerate().map(name).collect();
        graph(&names.iter().map(String::as_str).collect::<Vec<_>>(), &edges)
    })
}

proptest! {
    #[test]
    fn every_model_has_one_place_and_every_link_leads_to_one(g in any_graph()) {
        let f = Family::new(&g);
        let mut reached = vec![0; f.models.len()];
        let mut queue: Vec<(usize, usize)> = f.roots.iter().map(|&r| (r, 1)).collect();
        while let Some((m, depth)) = queue.pop() {
            let spot = f.models[m].spot.as_ref().expect("what is listed stands");
            reached[m] += 1;
            prop_assert!(reached[m] == 1 && depth <= MAX_DEPTH && spot.depth == depth);
            prop_assert_eq!(f.by_key(&spot.key), Some(m));
            prop_assert!(!spot.links.iter().any(|l| spot.children.contains(l) || f.models[*l].spot.is_none()));
            queue.extend(spot.children.iter().map(|&c| (c, depth + 1)));
        }
        for (m, model) in f.models.iter().enumerate() {
            prop_assert_eq!(model.spot.is_some(), reached[m] == 1);
            let living = model.cards.iter().filter(|&&n| !g.nodes[n].removed).count();
            prop_assert!(living == 0 || model.spot.as_ref().is_some_and(|s| s.living.len() == living));
        }
    }

    #[test]
    fn every_card_names_cards_and_has_a_name_of_its_own(g in any_graph()) {
        let f = Family::new(&g);
        for n in 0..g.nodes.len() {
            let Some(card) = f.card(n) else {
                prop_assert!(g.nodes[n].removed);
                continue;
            };
            prop_assert_eq!(f.by_label(&f.label(card)), Some(n));
            let ends = card.parents.iter().chain(&card.children).chain(&card.previous).chain(&card.next);
            prop_assert!(ends.copied().chain(f.ancestors(n)).chain(f.descendants(n)).all(|e| f.card(e).is_some()));
            prop_assert!(card.parents.iter().all(|p| f.ancestors(n).contains(p)));
            prop_assert!(!f.ancestors(n).contains(&n));
        }
    }
}
