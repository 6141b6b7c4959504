//! What files beside the weights claim about a model's base: the front matter of a Hugging Face model card, an adapter's
//! configuration. Recorded and followed as a hint; never believed over the content.
//!
//! Of YAML, only what such cards are written with is read: `key: value`, `key: [a, b]`, and a list of `- a` lines.

use std::path::Path;

use super::super::hash::HashedFile;
use crate::model::name::printable;

/// Longest file that is looked into.
const MAX_BYTES: u64 = 1 << 20;
/// Most claims that are kept.
const MAX_HINTS: usize = 16;

/// A claim, and the base that it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hint {
    /// `README.md: base_model acme/bert`.
    pub text: String,
    /// The base's name, if it names one.
    pub base: Option<String>,
    pub adapter: bool,
}

/// The claims that a version's files make.
pub fn hints(files: &[&HashedFile]) -> Vec<Hint> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.size <= MAX_BYTES) {
        match file.name.as_str() {
            "README.md" => found.extend(card(&read(&file.source))),
            "adapter_config.json" => found.extend(config(&read(&file.source), "base_model_name_or_path", true)),
            _ => {}
        }
    }
    found.truncate(MAX_HINTS);
    found
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn config(text: &str, key: &str, adapter: bool) -> Option<Hint> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let base = value.get(key)?.as_str()?.to_owned();
    Some(Hint { text: printable(&format!("adapter_config.json: {key} {base}")), base: Some(base), adapter })
}

fn card(text: &str) -> Vec<Hint> {
    let Some(matter) = text.strip_prefix("---").and_then(|t| t.split("\n---").next()) else { return vec![] };
    let mut out = Vec::new();
    let mut key = "";
    for line in matter.lines() {
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            out.extend(claim(key, item));
            continue;
        }
        let Some((k, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '#'])) else { continue };
        key = k.trim();
        let value = value.trim();
        let list = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
        list.unwrap_or(value).split(',').take(MAX_HINTS).for_each(|v| out.extend(claim(key, v)));
    }
    out
}

fn claim(key: &str, value: &str) -> Option<Hint> {
    let value = value.trim().trim_matches(['"', '\'']);
    let base = match key {
        "base_model" => Some(value.to_owned()),
        "base_model_relation" => None,
        _ => return None,
    };
    let text = printable(&format!("README.md: {key} {value}"));
    (!value.is_empty()).then(|| Hint { text, base, adapter: key == "base_model_relation" && value == "adapter" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str) -> Vec<String> {
        card(text).into_iter().filter_map(|h| h.base).collect()
    }

    #[test]
    fn a_card_names_its_bases() {
        assert_eq!(bases("---\nlicense: mit\nbase_model: acme/bert\n---\nbase_model: no\n"), ["acme/bert"]);
        assert_eq!(bases("---\nbase_model:\n- a/b\n- 'c'\ntags:\n- d\n---\n"), ["a/b", "c"]);
        assert_eq!(bases("---\nbase_model: [\"a\", b]\n---"), ["a", "b"]);
        assert!(bases("base_model: a").is_empty() && bases("---").is_empty() && bases("").is_empty());
        let all = card("---\nbase_model: b\nbase_model_relation: adapter\n---\n");
        assert_eq!(all[1].text, "README.md: base_model_relation adapter");
        assert!(all[1].adapter && all[1].base.is_none());
    }

    #[test]
    fn an_adapter_names_its_base() {
        let found = config(r#"{"base_model_name_or_path":"acme/bert","r":8}"#, "base_model_name_or_path", true);
        assert_eq!(found.unwrap().base.as_deref(), Some("acme/bert"));
        assert!(config("{", "x", true).is_none() && config("{\"x\":1}", "x", true).is_none());
    }
}
