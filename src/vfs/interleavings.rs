//! The tables of nodes and of handles under threads that take turns in many orders (feature `shuttle`).

use std::sync::Arc;

use shuttle::thread;

use super::VfsError;
use super::handle::{Handle, Handles};
use super::node::{Inodes, Node, ROOT};

/// Orders by chance, and orders with few but well placed turns (Burckhardt et al., "A randomized scheduler with
/// probabilistic guarantees of finding bugs", 2010).
fn explore(f: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(f.clone(), 2_000);
    shuttle::check_pct(f, 2_000, 3);
}

/// All nodes but the root have one hash: who comes second gets another number.
const HASH: u64 = 7;

fn model(name: &str) -> Node {
    Node::Model(name.parse().unwrap())
}

#[test]
fn a_node_keeps_its_number_while_the_kernel_knows_it() {
    explore(|| {
        let inodes = Arc::new(Inodes::new(&[(ROOT, Node::Root)]));
        let work = |name: &'static str| {
            let inodes = inodes.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let node = model(name);
                    let ino = inodes.remember(HASH, &node).unwrap();
                    assert_eq!(inodes.get(ino).unwrap(), node);
                    assert_eq!(inodes.remember(HASH, &node).unwrap(), ino);
                    inodes.forget(ino, 1);
                    assert_eq!(inodes.get(ino).unwrap(), node, "it is known once more");
                    assert_eq!(inodes.number(HASH, &node), ino);
                    inodes.forget(ino, 1);
                }
            })
        };
        let hands = [work("a"), work("b"), work("a")];
        hands.into_iter().for_each(|h| h.join().unwrap());
        assert_eq!(inodes.len(), 1, "all is forgotten but the root");
    });
}

#[test]
fn a_handle_is_one_opening_s_until_it_is_closed() {
    explore(|| {
        let handles = Arc::new(Handles::default());
        let (send, receive) = shuttle::sync::mpsc::channel();
        let open = |text: &'static str| {
            let (handles, send) = (handles.clone(), send.clone());
            thread::spawn(move || {
                let fh = handles.add(Handle::Text(text.into())).unwrap();
                send.send(fh).unwrap();
                let held = handles.get(fh).unwrap();
                handles.remove(fh);
                assert!(matches!(&*held, Handle::Text(t) if &**t == text), "who reads goes on");
                assert!(matches!(handles.get(fh), Err(VfsError::BadHandle)));
            })
        };
        let hands = [open("a"), open("b"), open("c")];
        let mut all: Vec<u64> = (0..3).map(|_| receive.recv().unwrap()).collect();
        let stranger = handles.get(all[0]); // there or not, never another's
        assert!(stranger.is_ok() || matches!(stranger, Err(VfsError::BadHandle)));
        hands.into_iter().for_each(|h| h.join().unwrap());
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), handles.len()), (3, 0));
    });
}
