//! Config and tokenizer files: what both sides changed, merged as text where that can be.
//!
//! JSON is merged key by key, objects within objects; a value that both changed in different ways, an array too, is a
//! conflict. Where a merge by lines says the same, its text is taken, else the value is written anew, indented as the base.
//! Other text is merged by lines (diff3). Keys that were added stand sorted at the end of their object, so that the
//! result is the same whichever side comes first.

use serde_json::{Map, Value};

/// Larger files are not merged.
pub const MAX_MERGED: u64 = 32 << 20;

/// A merge of texts.
#[derive(Debug, PartialEq)]
pub enum Merged<C> {
    Clean(Vec<u8>),
    Conflict(C),
}

/// `texts`: base, A, B. `theirs`: where both changed a value of JSON, B's is taken (true), A's, or it conflicts. `total`: the
/// tensors' bytes, which the index of a sharded model repeats.
pub fn merge(path: &str, texts: [&str; 3], theirs: Option<bool>, total: Option<u64>) -> Merged<()> {
    let [base, a, b] = texts;
    let lines = diffy::merge(base, a, b).ok();
    let parsed = match path.ends_with(".json") {
        true => [base, a, b].map(|t| serde_json::from_str::<Value>(t).ok()),
        false => [const { None }; 3],
    };
    let [base_value, Some(a_value), Some(b_value)] = parsed else {
        return lines.map_or(Merged::Conflict(()), |text| Merged::Clean(text.into_bytes()));
    };
    let keys = Keys { theirs, total };
    let at = &mut vec![];
    let Some(value) = keys.merge(at, base_value.as_ref(), Some(&a_value), Some(&b_value)) else {
        return Merged::Conflict(());
    };
    let value = value.unwrap_or(Value::Null);
    match lines {
        Some(text) if serde_json::from_str::<Value>(&text).is_ok_and(|v| v == value) => {
            Merged::Clean(text.into_bytes())
        }
        _ => Merged::Clean(write(&value, if base_value.is_some() { base } else { a })),
    }
}

struct Keys {
    theirs: Option<bool>,
    total: Option<u64>,
}

impl Keys {
    /// The merged value, `Some(None)` where there is none; `None` in a conflict.
    fn merge(
        &self,
        at: &mut Vec<String>,
        base: Option<&Value>,
        a: Option<&Value>,
        b: Option<&Value>,
    ) -> Option<Option<Value>> {
        match (base, a, b) {
            _ if a == b || b == base => Some(a.cloned()),
            _ if a == base => Some(b.cloned()),
            (Some(Value::Object(base)), Some(Value::Object(a)), Some(Value::Object(b))) => self.object(at, base, a, b),
            (None, Some(Value::Object(a)), Some(Value::Object(b))) => self.object(at, &Map::new(), a, b),
            _ if at == &["metadata", "total_size"] && self.total.is_some() => Some(self.total.map(Value::from)),
            _ => self.theirs.map(|theirs| if theirs { b.cloned() } else { a.cloned() }),
        }
    }

    fn object(
        &self,
        at: &mut Vec<String>,
        base: &Map<String, Value>,
        a: &Map<String, Value>,
        b: &Map<String, Value>,
    ) -> Option<Option<Value>> {
        let added = a.keys().chain(b.keys()).filter(|k| !base.contains_key(*k));
        let mut added: Vec<&String> = added.collect();
        added.sort();
        added.dedup();
        let sorted = base.len() > 1 && base.keys().is_sorted();
        let mut keys: Vec<&String> = base.keys().chain(added).collect();
        if sorted {
            keys.sort();
        }
        let mut out = Map::new();
        for key in keys {
            at.push(key.clone());
            let value = self.merge(at, base.get(key), a.get(key), b.get(key))?;
            at.pop();
            out.extend(value.map(|v| (key.clone(), v)));
        }
        Some(Some(Value::Object(out)))
    }
}

/// Indented as `like` is, with its last newline.
fn write(value: &Value, like: &str) -> Vec<u8> {
    let indent = like.lines().nth(1).map_or(0, |l| l.len() - l.trim_start_matches(' ').len());
    let mut out = Vec::new();
    let spaces = " ".repeat(indent.min(16));
    if indent > 0 {
        let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        let mut writer = serde_json::Serializer::with_formatter(&mut out, pretty);
        serde::Serialize::serialize(value, &mut writer).expect("values are JSON");
    } else {
        serde_json::to_writer(&mut out, value).expect("values are JSON");
    }
    if like.ends_with('\n') {
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(base: &str, a: &str, b: &str) -> Result<String, ()> {
        let one = merge("config.json", [base, a, b], None, None);
        let other = merge("config.json", [base, b, a], None, None);
        assert_eq!(one, other, "symmetric");
        match one {
            Merged::Clean(bytes) => Ok(String::from_utf8(bytes).unwrap()),
            Merged::Conflict(()) => Err(()),
        }
    }

    #[test]
    fn json_merges_key_by_key() {
        let base = "{\n  \"a\": 1,\n  \"b\": {\n    \"c\": [1],\n    \"d\": 2\n  }\n}\n";
        let a = base.replace("\"a\": 1", "\"a\": 3");
        let b = base.replace("\"d\": 2", "\"d\": 2,\n    \"e\": 1e-12");
        let want = a.replace("\"d\": 2", "\"d\": 2,\n    \"e\": 1e-12");
        assert_eq!(json(base, &a, &b).as_deref(), Ok(want.as_str()));
        assert_eq!(json(base, &a, &base.replace("\"a\": 1", "\"a\": 4")), Err(()));
        assert_eq!(json(base, &a.replace("[1]", "[1, 2]"), &base.replace("[1]", "[2]")), Err(()));
        // Neighbouring lines, which a merge by lines does not take, and keys added on both sides.
        let (a, b) = ("{\n  \"a\": 1,\n  \"x\": 1\n}", "{\n  \"a\": 1,\n  \"b\": 2\n}");
        assert_eq!(json("{\n  \"a\": 1\n}", a, b).as_deref(), Ok("{\n  \"a\": 1,\n  \"b\": 2,\n  \"x\": 1\n}"));
        assert_eq!(json("{\"a\":1,\"b\":2}", "{\"a\":1}", "{\"a\":2,\"b\":2}").as_deref(), Ok("{\"a\":2}"));
        let ours = merge("x.json", ["{\"a\":1}", "{\"a\":2}", "{\"a\":3}"], Some(true), None);
        assert_eq!(ours, Merged::Clean(b"{\"a\":3}".to_vec()));
    }

    #[test]
    fn the_size_of_a_sharded_model_follows_its_tensors() {
        let index = |n: u64| format!("{{\"metadata\":{{\"total_size\":{n}}}}}");
        let texts = [index(1), index(2), index(3)];
        let merged = merge("model.safetensors.index.json", texts.each_ref().map(String::as_str), None, Some(9));
        assert_eq!(merged, Merged::Clean(index(9).into_bytes()));
    }

    #[test]
    fn text_merges_by_lines() {
        let merged = |base: &str, a: &str, b: &str| merge("vocab.txt", [base, a, b], None, None);
        let clean = Merged::Clean(b"x\nb\nc\nd\ny\n".to_vec());
        assert_eq!(merged("a\nb\nc\nd\ne\n", "x\nb\nc\nd\ne\n", "a\nb\nc\nd\ny\n"), clean);
        assert_eq!(merged("a\n", "b\n", "c\n"), Merged::Conflict(()));
    }
}
