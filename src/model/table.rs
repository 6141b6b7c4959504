//! Tables as text, and the cells that several of them share. How a cell is painted is the caller's.

use super::graph::size;

/// Paints a cell's text; the head is `None` for the line of the heads.
pub type Paint<'a> = dyn Fn(Option<&str>, &str) -> String + 'a;

/// Without colour.
pub fn plain(_: Option<&str>, text: &str) -> String {
    text.to_owned()
}

/// Columns aligned under their heads; those whose head starts with '>' to the right. The first line holds
/// the heads, then comes one for each row.
pub fn table<'r>(heads: &[&str], rows: impl Iterator<Item = &'r [String]> + Clone, paint: &Paint) -> Vec<String> {
    let mut widths: Vec<usize> = heads.iter().map(|h| h.trim_start_matches('>').len()).collect();
    for row in rows.clone() {
        widths.iter_mut().zip(row).for_each(|(w, cell)| *w = (*w).max(cell.chars().count()));
    }
    let titles: Vec<&str> = heads.iter().map(|h| h.trim_start_matches('>')).collect();
    let head = line(heads, &widths, &titles, &|_, text| paint(None, text));
    let row = |r: &[String]| {
        let cells: Vec<&str> = r.iter().map(String::as_str).collect();
        line(heads, &widths, &cells, &|head, text| paint(Some(head), text))
    };
    std::iter::once(head).chain(rows.map(row)).collect()
}

/// One line, without blanks at its end.
fn line(heads: &[&str], widths: &[usize], cells: &[&str], paint: &dyn Fn(&str, &str) -> String) -> String {
    let last = cells.iter().rposition(|c| !c.is_empty()).map_or(0, |l| l + 1);
    let mut out = String::new();
    for (i, cell) in cells.iter().enumerate().take(last) {
        if i > 0 {
            out.push_str("  ");
        }
        let blanks = widths[i].saturating_sub(cell.chars().count());
        let right = heads[i].starts_with('>');
        let before = if right { blanks } else { 0 };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(&paint(heads[i], cell));
        if !right && i + 1 < last {
            out.extend(std::iter::repeat_n(' ', blanks));
        }
    }
    out
}

/// Logical and stored bytes and what that saves, as three cells of a table.
pub fn costs(logical: u64, stored: Option<u64>) -> [String; 3] {
    match stored {
        Some(stored) => [size(logical), size(stored), saved(logical, stored)],
        None => [size(logical), "?".to_owned(), String::new()],
    }
}

/// `87.5 %`; nothing where there is nothing to save.
pub fn saved(logical: u64, stored: u64) -> String {
    match logical {
        0 => String::new(),
        _ => format!("{:.1} %", 100.0 - 100.0 * stored as f64 / logical as f64),
    }
}

/// Text that somebody wrote, one line of it, without what would steer a terminal.
pub fn harmless(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_hold_no_blanks_at_the_end() {
        let rows = [vec!["a".into(), "10".into(), "long".into()], vec!["é€".into(), "9".into(), String::new()]];
        let rows = rows.iter().map(Vec::as_slice);
        assert_eq!(table(&["X", ">N", "Y"], rows, &plain), ["X    N  Y", "a   10  long", "é€   9"]);
        assert_eq!((saved(1000, 125), saved(0, 3)), ("87.5 %".into(), String::new()));
        assert_eq!(harmless("a\x1b[31mb"), "a[31mb");
    }
}
