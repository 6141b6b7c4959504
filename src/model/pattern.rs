//! Patterns of versions: `*` (any characters), `?` (one), `[ab]` (one of these) in `model@version`.

use glob::Pattern;

use super::name::{ModelName, VersionName};

/// `acme/*@v1*`, or `bert*` for models alone.
#[derive(Clone, Debug)]
pub struct VersionPattern {
    model: Pattern,
    version: Option<Pattern>,
}

impl VersionPattern {
    /// Whether a text is a pattern and not a name.
    pub fn is_one(text: &str) -> bool {
        text.contains(['*', '?', '['])
    }

    pub fn new(text: &str) -> Result<VersionPattern, String> {
        let part =
            |p: &str| Pattern::new(p).map_err(|e| format!("bad pattern '{}': {e}", super::name::printable(text)));
        let (model, version) = text.split_once('@').map_or((text, None), |(m, v)| (m, Some(v)));
        Ok(VersionPattern { model: part(model)?, version: version.map(part).transpose()? })
    }

    pub fn names_versions(&self) -> bool {
        self.version.is_some()
    }

    pub fn matches(&self, model: &ModelName, version: &VersionName) -> bool {
        self.model.matches(model.as_str()) && self.version.as_ref().is_none_or(|v| v.matches(version.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_versions_match() {
        let matches = |p: &str, m: &str, v: &str| {
            VersionPattern::new(p).unwrap().matches(&m.parse().unwrap(), &v.parse().unwrap())
        };
        assert!(matches("acme/*", "acme/bert", "v1") && matches("*", "acme/bert", "v1"));
        assert!(matches("bert@v?", "bert", "v1") && !matches("bert@v?", "bert", "v10"));
        assert!(!matches("bert", "bert-large", "v1") && matches("b[ae]rt*@*", "bert-large", "v1"));
        assert!(VersionPattern::new("[").is_err() && VersionPattern::is_one("a*") && !VersionPattern::is_one("a@v1"));
    }
}
