//! The nodes of `lineage/`: what each is, and what its number is hashed from.

use jiff::Timestamp;

use super::super::Kind;
use super::super::node::identity;
use super::super::source::{Drawing, Page, Sheet};
use crate::model::id::Id;
use crate::model::name::ModelName;

/// A directory of links from one card to others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::vfs) enum Kin {
    Parents,
    Children,
    Ancestors,
    Descendants,
}

impl Kin {
    pub const ALL: [Kin; 4] = [Kin::Parents, Kin::Children, Kin::Ancestors, Kin::Descendants];

    pub fn as_str(self) -> &'static str {
        match self {
            Kin::Parents => "parents",
            Kin::Children => "children",
            Kin::Ancestors => "ancestors",
            Kin::Descendants => "descendants",
        }
    }
}

/// The texts of a card and their names.
pub(super) const SHEETS: [(&str, Sheet); 4] =
    [("info.json", Sheet::Info), ("diff.txt", Sheet::Diff), ("log.txt", Sheet::Log), ("tests.json", Sheet::Tests)];

/// The drawings and their names.
pub(super) const DRAWINGS: [(&str, Drawing); 4] = [
    ("graph.dot", Drawing::Dot),
    ("graph.svg", Drawing::Svg),
    ("graph.json", Drawing::Json),
    ("update.json", Drawing::Update),
];

/// A file that holds one text for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::vfs) struct Text {
    pub page: Page,
    pub len: u64,
    pub digest: Id,
    pub time: Option<Timestamp>,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::vfs) enum Place {
    /// `lineage`
    Top,
    /// `lineage/tree`
    Tree,
    /// `lineage/of`
    Of,
    /// A model in the tree, by the hash of its path: at another place it is another directory.
    Spot(Id),
    /// The cards of a model.
    Model(ModelName),
    /// A version's card.
    Card(Id),
    Kin(Id, Kin),
    /// A symlink. All of one time that lead to one place are one: thousands of cards link to the same.
    Link {
        target: String,
        time: Timestamp,
    },
    Text(Text),
    /// A text in a listing: what it holds is found out when it is looked up.
    Unread(Page),
}

impl Place {
    pub fn kind(&self) -> Kind {
        match self {
            Place::Link { .. } => Kind::Symlink,
            Place::Text(_) | Place::Unread(_) => Kind::File,
            _ => Kind::Directory,
        }
    }

    /// What its number is hashed from.
    pub fn identity(&self) -> Vec<u8> {
        match self {
            Place::Top => identity(b"lineage", b"", b""),
            Place::Tree => identity(b"lineage", b"tree", b""),
            Place::Of => identity(b"lineage", b"of", b""),
            Place::Spot(key) => identity(b"lineage tree", &key.0, b""),
            Place::Model(name) => identity(b"lineage of", name.as_str().as_bytes(), b""),
            Place::Card(id) => identity(b"lineage card", &id.0, b""),
            Place::Kin(id, kin) => identity(b"lineage card", &id.0, kin.as_str().as_bytes()),
            Place::Link { target, time } => identity(b"lineage link", &nanos(Some(time)), target.as_bytes()),
            Place::Text(text) => {
                let whose = [&nanos(text.time.as_ref())[..], &page_identity(&text.page)].concat();
                identity(b"lineage text", &text.digest.0, &whose)
            }
            Place::Unread(page) => identity(b"lineage page", b"", &page_identity(page)),
        }
    }
}

fn nanos(time: Option<&Timestamp>) -> [u8; 16] {
    time.map_or(0, |t| t.as_nanosecond()).to_le_bytes()
}

fn page_identity(page: &Page) -> Vec<u8> {
    let name_of = |sheet: &Sheet| SHEETS.iter().find(|s| s.1 == *sheet).map_or("", |s| s.0);
    match page {
        Page::Version(id, sheet) => [&id.0[..], name_of(sheet).as_bytes()].concat(),
        Page::Graph(drawing) => DRAWINGS.iter().find(|d| d.1 == *drawing).map_or("", |d| d.0).as_bytes().to_vec(),
    }
}
