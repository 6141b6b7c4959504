//! The plan against small lineages drawn by hand, and against the plainest reference on random ones.

use super::*;
use proptest::prelude::*;

/// A version `model@n` and what it comes from, each by its place in the list.
#[derive(Debug)]
struct World(Vec<Fact>);

fn id(n: usize) -> Id {
    Id([n as u8 + 1; 32])
}

impl World {
    fn new() -> World {
        World(vec![])
    }

    fn add(&mut self, model: &str, previous: Option<usize>, parents: &[usize]) -> usize {
        let n = self.0.len();
        let count = self.0.iter().filter(|f| f.model.as_str() == model).count() as u64;
        self.0.push(Fact {
            id: id(n),
            model: model.parse().unwrap(),
            version: VersionName::numbered(count + 1),
            removed: false,
            previous: previous.map(id),
            parents: parents.iter().map(|&p| (id(p), Relation::Finetune)).collect(),
        });
        n
    }

    fn plan(&self, old: usize, new: usize, limits: &Limits, recipe: impl Fn(&Fact) -> bool) -> Plan {
        plan(&Facts::new(&self.0), &self.0[old], &self.0[new], &recipe, limits, Timestamp::UNIX_EPOCH)
    }
}

/// `model<-parents` of each step, in order.
fn told(plan: &Plan, world: &World) -> Vec<String> {
    let name = |from: &From| match from {
        From::Version(v) => world.0.iter().find(|f| f.id == *v).map(|f| format!("{}@{}", f.model, f.version)).unwrap(),
        From::Step(n) => plan.steps[*n].model.to_string(),
    };
    let step =
        |s: &Step| format!("{}<-{}", s.model, s.parents.iter().map(|p| name(&p.0)).collect::<Vec<_>>().join("+"));
    plan.steps.iter().map(step).collect()
}

fn left(plan: &Plan) -> Vec<(&str, Why)> {
    plan.left.iter().map(|l| (l.model.as_str(), l.why.clone())).collect()
}

fn limits(only: &[&str], skip: &[&str], stop_at: &[&str]) -> Limits {
    let globs = |g: &[&str]| g.iter().map(|g| g.parse().unwrap()).collect();
    Limits { only: globs(only), skip: globs(skip), stop_at: globs(stop_at) }
}

/// base@v1 -> a@v1 -> a@v2 -> c, base@v1 -> b@v1 -> c; base@v2; d from c; e on its own
fn diamond() -> (World, usize, usize) {
    let mut w = World::new();
    let base = w.add("base", None, &[]);
    let a1 = w.add("a", None, &[base]);
    let a2 = w.add("a", Some(a1), &[]);
    let b = w.add("b", None, &[base]);
    let c = w.add("c", None, &[a1, b]);
    w.add("d", None, &[c]);
    w.add("e", None, &[]);
    let new = w.add("base", Some(base), &[]);
    assert_eq!(a2, 2);
    (w, base, new)
}

#[test]
fn a_node_waits_until_all_its_parents_are_there_and_is_made_once() {
    let (w, old, new) = diamond();
    let plan = w.plan(old, new, &Limits::default(), |_| true);
    assert_eq!(told(&plan, &w), ["a<-base@v2", "b<-base@v2", "c<-a+b", "d<-c"]);
    assert_eq!(plan.steps[0].old, id(2), "a's newest is what is made again");
    assert!(plan.left.is_empty());
}

#[test]
fn what_is_left_says_why_and_what_hangs_on_it_has_nothing_new() {
    let (w, old, new) = diamond();
    let plan = w.plan(old, new, &Limits::default(), |f| f.model.as_str() != "c");
    assert_eq!((told(&plan, &w).len(), left(&plan)), (2, vec![("c", Why::NoRecipe), ("d", Why::NothingNew)]));
    let plan = w.plan(old, new, &limits(&[], &["b"], &["c"]), |_| true);
    assert_eq!(told(&plan, &w), ["a<-base@v2", "c<-a+b@v1"]);
    assert_eq!(left(&plan), [("b", Why::Skipped), ("d", Why::BeyondStop)]);
    let plan = w.plan(old, new, &limits(&["b"], &[], &[]), |_| true);
    assert_eq!(told(&plan, &w), ["b<-base@v2"]);
}

#[test]
fn a_second_cascade_has_nothing_to_do_but_what_the_first_left() {
    let (mut w, old, new) = diamond();
    let a3 = w.add("a", Some(2), &[new]);
    let b2 = w.add("b", Some(3), &[new]);
    let plan = w.plan(old, new, &Limits::default(), |_| true);
    assert_eq!(told(&plan, &w), ["c<-a@v3+b@v2", "d<-c"]);
    let c2 = w.add("c", Some(4), &[a3, b2]);
    w.add("d", Some(5), &[c2]);
    let plan = w.plan(old, new, &Limits::default(), |_| true);
    assert_eq!((plan.steps.len(), plan.left.len()), (0, 0));
    assert!(stale(&Facts::new(&w.0)).is_empty());
}

#[test]
fn models_that_go_round_in_a_circle_end() {
    let mut w = World::new();
    let base = w.add("base", None, &[]);
    let a1 = w.add("a", None, &[base]);
    let b1 = w.add("b", None, &[a1]);
    w.add("a", Some(a1), &[b1]);
    let new = w.add("base", Some(base), &[]);
    let plan = w.plan(base, new, &Limits::default(), |_| true);
    // b is older, so it goes first, from the newest a that there is.
    assert_eq!(told(&plan, &w), ["b<-a@v2", "a<-b"]);
}

#[test]
fn stale_is_what_was_not_made_from_the_newest() {
    let (w, _, _) = diamond();
    let facts = Facts::new(&w.0);
    let told: Vec<String> =
        stale(&facts).iter().map(|(f, p, n)| format!("{} {}@{} {}", f.model, p.model, p.version, n.version)).collect();
    assert_eq!(told, ["a base@v1 v2", "b base@v1 v2", "c a@v1 v2"]);
}

/// Random lineages: of each version its model, whether it follows its model's last version, and parents among the older.
fn worlds() -> impl Strategy<Value = World> {
    let version = (0usize..7, any::<bool>(), prop::collection::vec(0usize..60, 0..4));
    prop::collection::vec(version, 1..40).prop_map(|all| {
        let mut w = World::new();
        w.add("m0", None, &[]);
        for (model, follows, parents) in all {
            let model = format!("m{model}");
            let last = w.0.iter().rposition(|f| f.model.as_str() == model);
            let older: Vec<usize> = parents.into_iter().filter(|p| *p < w.0.len()).collect();
            let mut other: Vec<usize> = older.into_iter().filter(|&p| w.0[p].model.as_str() != model).collect();
            other.dedup();
            w.add(&model, last.filter(|_| follows), &other);
        }
        let last = w.0.iter().rposition(|f| f.model.as_str() == "m0");
        w.add("m0", last, &[]);
        w
    })
}

/// Whether a version carries one of `old`, in the plainest way.
fn carries(w: &World, n: usize, old: &[usize]) -> bool {
    let mut at = n;
    let parents = loop {
        match (&w.0[at].parents[..], w.0[at].previous) {
            ([], Some(p)) => at = w.0.iter().position(|f| f.id == p).unwrap(),
            (parents, _) => break parents,
        }
    };
    let place = |p: &Id| w.0.iter().position(|f| f.id == *p).unwrap();
    parents
        .iter()
        .map(|(p, _)| place(p))
        .any(|p| old.contains(&p) || (w.0[p].model.as_str() != "m0" && carries(w, p, old)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_plan_has_each_newest_carrier_once_after_what_it_is_made_from(w in worlds(), pick in 0usize..10) {
        let of_base: Vec<usize> = (0..w.0.len()).filter(|&n| w.0[n].model.as_str() == "m0").collect();
        let new = *of_base.last().unwrap();
        let old = of_base[pick % (of_base.len() - 1)];
        let facts = Facts::new(&w.0);
        let line: Vec<Id> = facts.line(id(new)).map(|f| f.id).collect();
        let between = |n: usize| n > old && n < new && line.contains(&id(n)) && line.contains(&id(old));
        let olds: Vec<usize> = of_base.iter().copied().filter(|&n| n == old || between(n)).collect();
        let plan = w.plan(old, new, &Limits::default(), |_| true);

        let newest = |n: usize| w.0.iter().rposition(|f| f.model == w.0[n].model) == Some(n);
        let want: BTreeSet<usize> = (0..w.0.len())
            .filter(|&n| w.0[n].model.as_str() != "m0" && newest(n) && carries(&w, n, &olds)).collect();
        let place = |i: &Id| w.0.iter().position(|f| f.id == *i).unwrap();
        let all: Vec<usize> = plan.steps.iter().map(|s| place(&s.old)).chain(plan.left.iter().map(|l| place(&l.old))).collect();
        prop_assert_eq!(all.len(), want.len());
        prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), want);
        prop_assert!(plan.left.iter().all(|l| l.why == Why::NothingNew));
        for (n, step) in plan.steps.iter().enumerate() {
            prop_assert!(step.parents.iter().all(|(from, _)| !matches!(from, From::Step(p) if *p >= n)));
            for (from, _) in &step.parents {
                let From::Version(v) = from else { continue };
                prop_assert!(w.0[place(v)].model.as_str() != "m0" || place(v) == new || place(v) > new);
            }
        }
    }

    #[test]
    fn every_step_of_a_cascade_becomes_ready_and_none_twice(w in worlds(), fails in prop::collection::hash_set(0usize..7, 0..3)) {
        let new = w.0.len() - 1;
        let plan = w.plan(0, new, &Limits::default(), |_| true);
        let mut cascade = Cascade::new(plan);
        let mut ran = HashSet::new();
        while let Some(n) = cascade.ready(&HashSet::new()) {
            prop_assert!(ran.insert(n));
            let state = if fails.contains(&n) { State::Failed { why: String::new() } } else { State::Done { id: id(200 + n) } };
            cascade.set(n, state);
        }
        let hangs_on_a_failure = |n: usize| {
            let mut all = vec![n];
            let mut at = 0;
            while at < all.len() {
                let parents = cascade.plan.steps[all[at]].parents.iter();
                all.extend(parents.filter_map(|(f, _)| if let From::Step(p) = f { Some(*p) } else { None }));
                at += 1;
            }
            all.iter().any(|n| fails.contains(n))
        };
        for n in 0..cascade.states.len() {
            prop_assert_eq!(matches!(cascade.states[n], State::Done { .. }), !hangs_on_a_failure(n));
        }
    }
}
