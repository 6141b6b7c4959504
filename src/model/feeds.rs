//! Which tensors feed each other, by their names: what one merge side changed may not go with what the other changed.
//!
//! A name's first number is its layer, what stands before that its stack (`model.layers`, `encoder.layer`). Names without
//! a number are the model's input (embeddings) or its output (heads, final norms). Neighbours are tensors of one layer or
//! of layers one apart; the input and a stack's first layer; a stack's last layer and the output; the ends of different
//! stacks, and an encoder's last layer and all of the decoder; input and output, whose weights may be tied. Where names tell
//! nothing, all is output, and so everything feeds everything: the tests decide.

use std::collections::HashMap;

/// Parts of names that the input has.
const INPUT: [&str; 7] = ["embed", "wte", "wpe", "stem", "patch", "tok_", "pos_"];

/// Where a tensor stands.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Spot<'n> {
    Input,
    Layer(&'n str, u64),
    Output,
}

fn spot(name: &str) -> Spot<'_> {
    let mut at = 0;
    for part in name.split('.') {
        if let (true, Ok(n)) = (part.bytes().all(|b| b.is_ascii_digit()), part.parse()) {
            return Spot::Layer(&name[..at], n);
        }
        at += part.len() + 1;
    }
    let lower = name.to_lowercase();
    if INPUT.iter().any(|w| lower.contains(w)) { Spot::Input } else { Spot::Output }
}

/// The layers of a model.
pub struct Layers<'n> {
    /// The first and the last layer of each stack.
    ends: HashMap<&'n str, (u64, u64)>,
}

impl<'n> Layers<'n> {
    pub fn of(names: impl Iterator<Item = &'n str>) -> Layers<'n> {
        let mut ends: HashMap<&str, (u64, u64)> = HashMap::new();
        for name in names {
            if let Spot::Layer(stack, n) = spot(name) {
                let e = ends.entry(stack).or_insert((n, n));
                *e = (e.0.min(n), e.1.max(n));
            }
        }
        Layers { ends }
    }

    /// Does one of the two feed the other? Symmetric.
    pub fn feed(&self, a: &str, b: &str) -> bool {
        match (spot(a), spot(b)) {
            (Spot::Layer(s, i), Spot::Layer(t, j)) if s == t => i.abs_diff(j) <= 1,
            (Spot::Layer(s, i), Spot::Layer(t, j)) => {
                let crosses =
                    |s: &str, i, t: &str| s.contains("encoder") && t.contains("decoder") && self.is_last(s, i);
                self.is_end(s, i) && self.is_end(t, j) || crosses(s, i, t) || crosses(t, j, s)
            }
            (Spot::Layer(s, i), Spot::Input) | (Spot::Input, Spot::Layer(s, i)) => self.is_first(s, i),
            (Spot::Layer(s, i), Spot::Output) | (Spot::Output, Spot::Layer(s, i)) => self.is_last(s, i),
            _ => true,
        }
    }

    fn is_first(&self, stack: &str, n: u64) -> bool {
        self.ends.get(stack).is_none_or(|e| e.0 == n)
    }

    fn is_last(&self, stack: &str, n: u64) -> bool {
        self.ends.get(stack).is_none_or(|e| e.1 == n)
    }

    fn is_end(&self, stack: &str, n: u64) -> bool {
        self.is_first(stack, n) || self.is_last(stack, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_by_layer() {
        let names: Vec<String> = (0..4)
            .flat_map(|i| [format!("bert.encoder.layer.{i}.output.dense.weight"), format!("decoder.block.{i}.w")])
            .chain(["embeddings.word_embeddings.weight", "classifier.bias"].map(str::to_owned))
            .collect();
        let l = Layers::of(names.iter().map(String::as_str));
        let enc = |i: u32| format!("bert.encoder.layer.{i}.output.dense.weight");
        let cases = [
            (enc(0), enc(1), true),
            (enc(1), enc(1), true),
            (enc(0), enc(2), false),
            ("embeddings.word_embeddings.weight".into(), enc(0), true),
            ("embeddings.word_embeddings.weight".into(), enc(1), false),
            ("classifier.bias".into(), enc(3), true),
            ("classifier.bias".into(), enc(2), false),
            ("classifier.bias".into(), "embeddings.word_embeddings.weight".into(), true),
            (enc(3), "decoder.block.2.w".into(), true),
            (enc(2), "decoder.block.2.w".into(), false),
            ("a".into(), "b".into(), true),
        ];
        for (a, b, want) in cases {
            assert_eq!((l.feed(&a, &b), l.feed(&b, &a)), (want, want), "{a} {b}");
        }
    }
}
