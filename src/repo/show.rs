//! A version as JSON, as `mgit show --json` prints it and the mount has it: the contract's keys.

use serde_json::{Value, json};

use super::Head;
use super::engine::Detail;
use crate::model::record::{EntryKind, FileEntry, ParentEdge, Relation, VersionRecord};

/// A version reference as the contract writes it.
pub fn version(head: &Head) -> Value {
    json!({"model": head.model, "version": head.version, "id": head.id})
}

/// A version reference with the relation of the edge that leads to it.
pub fn related((head, relation): &(Head, Relation)) -> Value {
    json!({"model": head.model, "version": head.version, "id": head.id, "relation": relation})
}

/// A parent: where they are known, its share in a merge, at which distance the content suggested it, and that the
/// direction is a guess.
pub fn parent((head, edge): &(Head, ParentEdge)) -> Value {
    let mut value = related(&(head.clone(), edge.relation));
    if let Some(c) = edge.coefficient {
        value["coefficient"] = json!(c);
    }
    if let Some(d) = edge.distance {
        value["distance"] = json!(d);
    }
    if edge.guess {
        value["guess"] = Value::Bool(true);
    }
    value
}

/// The version with its files and edges; `charges` has what each file of the record is charged.
pub fn as_json(d: &Detail, record: &VersionRecord, charges: &[u64]) -> Value {
    let files = record.files.iter().zip(charges).filter(|(f, _)| f.kind == EntryKind::File);
    let file = |(f, stored): (&FileEntry, &u64)| json!({"path": f.path, "bytes": f.bytes, "stored_bytes": stored, "blake3": f.digest});
    json!({
        "model": d.head.model, "version": d.head.version, "id": d.head.id,
        "created": record.created, "message": record.message, "lossy": record.lossy,
        "parents": d.parents.iter().map(parent).collect::<Vec<_>>(),
        "origin": record.origin,
        "merge": record.merge,
        "previous": d.previous.as_ref().map(version),
        "next": d.next.iter().map(version).collect::<Vec<_>>(),
        "children": d.children.iter().map(related).collect::<Vec<_>>(),
        "files": files.map(file).collect::<Vec<_>>(),
        "tags": d.tags,
    })
}
