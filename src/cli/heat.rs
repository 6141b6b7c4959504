//! A heat map of a table of cosines, as SVG text: pure, and with no more than rectangles and words.

use std::fmt::Write;

/// Pixels of a cell, and of a letter of the labels (about).
const CELL: usize = 56;
const LETTER: usize = 7;

/// One cell a pair, -1 blue, 0 white, 1 red; grey where there is no figure. `cosines` is square, with a label a row.
pub fn map(labels: &[String], cosines: &[Vec<Option<f64>>]) -> String {
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let (left, top) = (longest * LETTER + 50, 40);
    let (width, height) = (left + labels.len() * CELL + 20, top + labels.len() * CELL + 20);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, (label, row)) in labels.iter().zip(cosines).enumerate() {
        let y = top + i * CELL;
        text(&mut svg, left - 8, y + CELL / 2 + 4, "end", &format!("{label}  {}", i + 1));
        text(&mut svg, left + i * CELL + CELL / 2, top - 10, "middle", &(i + 1).to_string());
        for (j, &cosine) in row.iter().enumerate() {
            let (x, fill) = (left + j * CELL, colour(cosine));
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{fill}\" stroke=\"white\"/>"
            );
            let shown = cosine.map_or_else(|| "-".to_owned(), |c| format!("{c:.2}"));
            text(&mut svg, x + CELL / 2, y + CELL / 2 + 4, "middle", &shown);
        }
    }
    svg + "</svg>\n"
}

fn text(svg: &mut String, x: usize, y: usize, anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", escape(words));
}

/// A label may be a path, which may hold anything.
fn escape(words: &str) -> String {
    let plain: String = words.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn colour(cosine: Option<f64>) -> String {
    let Some(c) = cosine else { return "#dddddd".to_owned() };
    // Light enough at the ends for black words.
    let fade = (255.0 - c.abs().min(1.0) * 135.0) as u8;
    match c < 0.0 {
        true => format!("#{fade:02x}{fade:02x}ff"),
        false => format!("#ff{fade:02x}{fade:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_coloured_and_labels_escaped() {
        let labels = ["a<b>&".to_owned(), "c".to_owned()];
        let svg = map(&labels, &[vec![Some(1.0), Some(-0.5)], vec![Some(-0.5), None]]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a&lt;b&gt;&amp;  1") && !svg.contains("a<b"));
        assert_eq!(svg.matches("<rect x=").count(), 4);
        assert_eq!(
            (colour(Some(0.0)), colour(Some(1.0)), colour(Some(-1.0))),
            ("#ffffff".into(), "#ff7878".into(), "#7878ff".into())
        );
    }
}
