//! The graph in a terminal: a star for each node, newest first, and lanes that lead down to where it comes from.
//!
//! A lane is two characters wide and leads to one node; no two lead to the same one. Under a node, its lane
//! goes on to the first parent that has no lane yet; the other such parents get lanes beside it (`\`), and to
//! parents that have one, a line is drawn (`/`, `\`, over lanes between with `_`). A lane never moves but
//! to close a gap or to make room. What stands beside the stars is the caller's.

use std::ops::Range;

/// One line of the drawing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// What is drawn, without blanks at the end.
    pub drawing: String,
    /// The node whose star it holds.
    pub node: Option<usize>,
}

/// Draws nodes in the order given, which must have each before its parents; `parents[n]` are places in
/// that order. A parent that comes earlier, or twice, is passed over.
pub fn draw(parents: &[Vec<usize>]) -> Vec<Line> {
    let mut drawing = Drawing::default();
    for (n, all) in parents.iter().enumerate() {
        let mut later: Vec<usize> = Vec::new();
        for &p in all {
            if p > n && p < parents.len() && !later.contains(&p) {
                later.push(p);
            }
        }
        drawing.node(n, &later);
    }
    drawing.lines
}

#[derive(Default)]
struct Drawing {
    /// The node that each lane leads to.
    lanes: Vec<usize>,
    lines: Vec<Line>,
    /// The lane that ended with the last line, for want of parents.
    ended: Option<usize>,
}

/// A line in the making; what is drawn twice at one place is the last.
#[derive(Default)]
struct Row(Vec<char>);

impl Row {
    fn put(&mut self, places: impl IntoIterator<Item = usize>, c: char) -> &mut Row {
        for at in places {
            self.0.resize(self.0.len().max(at + 1), ' ');
            self.0[at] = c;
        }
        self
    }

    fn bars(lanes: Range<usize>) -> Row {
        let mut row = Row::default();
        row.put(lanes.map(|l| 2 * l), '|');
        row
    }

    /// Lanes that go on one place further to the right.
    fn right(&mut self, lanes: Range<usize>) -> &mut Row {
        self.put(lanes.map(|l| 2 * l + 1), '\\')
    }

    /// Lanes that go on one place further to the left.
    fn left(&mut self, lanes: Range<usize>) -> &mut Row {
        self.put(lanes.map(|l| 2 * l - 1), '/')
    }

    /// A level line above these lanes' right sides.
    fn level(&mut self, lanes: Range<usize>) -> &mut Row {
        self.put(lanes.map(|l| 2 * l + 1), '_')
    }
}

impl Drawing {
    fn push(&mut self, row: &Row, node: Option<usize>) {
        let drawing = row.0.iter().collect::<String>().trim_end().to_owned();
        self.lines.push(Line { drawing, node });
    }

    fn lane_of(&self, node: usize) -> Option<usize> {
        self.lanes.iter().position(|&n| n == node)
    }

    fn node(&mut self, n: usize, parents: &[usize]) {
        let lane = self.lane_of(n).unwrap_or_else(|| {
            if self.ended == Some(self.lanes.len()) {
                // Right under a root, a tip would look like its parent.
                self.push(&Row::bars(0..self.lanes.len()), None);
            }
            self.lanes.push(n);
            self.lanes.len() - 1
        });
        self.ended = None;
        let (old, new): (Vec<usize>, Vec<usize>) = parents.iter().partition(|p| self.lane_of(**p).is_some());
        self.star(n, lane, new.len());
        match (new.is_empty(), old.split_first()) {
            (true, None) => self.end(lane),
            (true, Some((&last, others))) => {
                others.iter().for_each(|&p| self.link(lane, p));
                self.lead(lane, last);
            }
            (false, _) => {
                self.spread(lane, &new);
                old.iter().for_each(|&p| self.link(lane, p));
            }
        }
    }

    /// The node's line; before it, room for all but one of the lanes that a merge of more than two needs.
    fn star(&mut self, n: usize, lane: usize, lanes: usize) {
        let (count, more) = (self.lanes.len(), lanes.saturating_sub(2));
        for step in 0..if lane + 1 < count { more } else { 0 } {
            self.push(Row::bars(0..lane + 1).right(lane + 1 + step..count + step), None);
        }
        let mut row = Row::bars(0..lane);
        row.put((lane + 1..count).map(|l| 2 * (l + more)), '|').put([2 * lane], '*');
        if more > 0 {
            row.put(2 * lane + 1..2 * (lane + more), '-').put([2 * (lane + more)], '.');
        }
        self.push(&row, Some(n));
    }

    /// The lane goes on to the first, lanes beside it to the others.
    fn spread(&mut self, lane: usize, parents: &[usize]) {
        let (count, added) = (self.lanes.len(), parents.len() - 1);
        if added > 0 {
            // Those on the right moved all but one place before the star.
            let right = lane + added..count + added - 1;
            self.push(Row::bars(0..lane + 1).right(lane..lane + added).right(right), None);
        }
        self.lanes.splice(lane..lane + 1, parents.iter().copied());
    }

    /// A line from a lane to that of a parent. Both go on.
    fn link(&mut self, lane: usize, parent: usize) {
        let Some(to) = self.lane_of(parent) else { return };
        let count = self.lanes.len();
        match to < lane {
            true => {
                self.sweep(lane, to, 0..count, 0..0);
                self.arrive(2 * to + 1, to + 1 < lane, '/');
            }
            false => {
                let right = lane + 1..to.saturating_sub(1);
                self.push(Row::bars(0..count).right(lane..lane + 1).level(right), None);
                self.arrive((2 * to).saturating_sub(1), lane + 1 < to, '\\');
            }
        }
    }

    /// The second half of a line that crosses lanes.
    fn arrive(&mut self, at: usize, crosses: bool, c: char) {
        if crosses {
            self.push(Row::bars(0..self.lanes.len()).put([at], c), None);
        }
    }

    /// The first line of what goes from one lane left to another, with `bars` drawn and `shift` closing up.
    fn sweep(&mut self, from: usize, to: usize, bars: Range<usize>, shift: Range<usize>) {
        self.push(Row::bars(bars).left(from..from + 1).left(shift).level(to + 1..from - 1), None);
    }

    /// The lane leads to a parent that has one: the one on the right ends in the one on the left.
    fn lead(&mut self, lane: usize, parent: usize) {
        let Some(other) = self.lane_of(parent) else { return };
        let (left, right) = (lane.min(other), lane.max(other));
        let count = self.lanes.len();
        self.sweep(right, left, 0..right, right + 1..count);
        self.lanes[left] = parent;
        self.lanes.remove(right);
        self.arrive(2 * left + 1, left + 1 < right, '/');
    }

    /// The lane ends; those on its right close up.
    fn end(&mut self, lane: usize) {
        let count = self.lanes.len();
        self.lanes.remove(lane);
        match lane + 1 < count {
            true => self.push(Row::bars(0..lane).left(lane + 1..count), None),
            false => self.ended = Some(lane),
        }
    }
}
