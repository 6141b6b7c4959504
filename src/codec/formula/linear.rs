//! The little linear algebra that the fits need: least squares from a Gram matrix, an orthonormal basis, a rank.
//! Nothing here is on the decoding side, so no bit of it is relied on.

/// Least squares over `chosen` columns of a Gram matrix whose last row is the target: coefficients, their
/// variances in units of the residual's, and the residual's sum of squares. `None` where the columns are dependent.
pub(super) fn solve(gram: &[Vec<f64>], chosen: &[usize]) -> Option<(Vec<f64>, Vec<f64>, f64)> {
    let (n, target) = (chosen.len(), gram.len() - 1);
    let norm: Vec<f64> = chosen.iter().map(|&c| gram[c][c].sqrt()).collect();
    if norm.iter().any(|v| !v.is_normal()) {
        return None;
    }
    let a = |i: usize, j: usize| gram[chosen[i]][chosen[j]] / (norm[i] * norm[j]);
    let mut l = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let s: f64 = a(i, j) - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>();
            if i == j && s < 1e-11 {
                return None;
            }
            l[i][j] = if i == j { s.sqrt() } else { s / l[j][j] };
        }
    }
    let column = |b: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let mut x = vec![0.0; n];
        for i in 0..n {
            x[i] = (b(i) - (0..i).map(|k| l[i][k] * x[k]).sum::<f64>()) / l[i][i];
        }
        for i in (0..n).rev() {
            x[i] = (x[i] - (i + 1..n).map(|k| l[k][i] * x[k]).sum::<f64>()) / l[i][i];
        }
        x
    };
    let x = column(&|i| gram[chosen[i]][target] / norm[i]);
    let explained: f64 = (0..n).map(|i| x[i] * gram[chosen[i]][target] / norm[i]).sum();
    let variances = (0..n).map(|i| column(&|j| (i == j) as u8 as f64)[i] / (norm[i] * norm[i])).collect();
    let coefficients = x.iter().zip(&norm).map(|(x, n)| x / n).collect();
    Some((coefficients, variances, (gram[target][target] - explained).max(0.0)))
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `a += f b`.
pub(super) fn add(a: &mut [f64], f: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(x, y)| *x += f * y);
}

/// An orthonormal basis of the vectors' span (Gram-Schmidt, twice); dependent ones are left out.
pub(super) fn orthonormal(vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for mut v in vectors {
        let before = dot(&v, &v);
        for _ in 0..2 {
            for b in &basis {
                let f = dot(&v, b);
                add(&mut v, -f, b);
            }
        }
        let after = dot(&v, &v);
        if after > 1e-20 * before && after.is_normal() {
            let f = 1.0 / after.sqrt();
            v.iter_mut().for_each(|x| *x *= f);
            basis.push(v);
        }
    }
    basis
}

/// What is left of the matrix's sum of squares after 0, 1, 2, … rows are projected out, the largest first.
pub(super) fn tails(mut rows: Vec<Vec<f64>>, most: usize) -> Vec<f64> {
    let mut left: Vec<f64> = rows.iter().map(|r| dot(r, r)).collect();
    let mut tails = vec![left.iter().sum()];
    while tails.len() <= most {
        let Some(pivot) = (0..rows.len()).max_by(|&a, &b| left[a].total_cmp(&left[b])) else { break };
        let basis = orthonormal(vec![rows.swap_remove(pivot)]);
        left.swap_remove(pivot);
        let Some(b) = basis.first() else { break };
        for (r, l) in rows.iter_mut().zip(&mut left) {
            let f = dot(r, b);
            add(r, -f, b);
            *l = dot(r, r);
        }
        tails.push(left.iter().sum());
    }
    tails
}

/// Eigenvalues and vectors of a symmetric matrix, the largest first (cyclic Jacobi).
pub(super) fn eigen(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    let n = a.len();
    let mut v: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| (i == j) as u8 as f64).collect()).collect();
    for _ in 0..30 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        if off <= 1e-26 * (0..n).map(|i| a[i][i] * a[i][i]).sum::<f64>() {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, p, q);
            }
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> = v.into_iter().enumerate().map(|(i, v)| (a[i][i], v)).collect();
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    pairs
}

/// Makes `a[p][q]` zero. `v` holds the vectors as rows.
fn rotate(a: &mut [Vec<f64>], v: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for row in a.iter_mut() {
        (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
    }
    for rows in [a, v] {
        for k in 0..rows[p].len() {
            (rows[p][k], rows[q][k]) = (c * rows[p][k] - s * rows[q][k], s * rows[p][k] + c * rows[q][k]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigen_and_tails_know_a_rank() {
        let u = [[1.0, 2.0, 3.0, 4.0], [2.0, -1.0, 0.5, 1.0]];
        let m: Vec<Vec<f64>> =
            (0..4).map(|i| (0..4).map(|j| u[0][i] * u[0][j] + u[1][i] * u[1][j]).collect()).collect();
        let pairs = eigen(m.clone());
        assert!(pairs[1].0 > 1.0 && pairs[2].0.abs() < 1e-9);
        for (value, v) in &pairs {
            let image: Vec<f64> = m.iter().map(|row| dot(row, v)).collect();
            assert!(image.iter().zip(v).all(|(i, v)| (i - value * v).abs() < 1e-9));
        }
        let t = tails(m, 3);
        assert!(t[1] > 1e-3 && t[2] < 1e-9 * t[0]);
    }

    #[test]
    fn least_squares_finds_the_mix() {
        let (p, q): (Vec<f64>, Vec<f64>) = (0..50).map(|i| ((i as f64).sin(), (i as f64 * 1.7).cos())).unzip();
        let y: Vec<f64> = p.iter().zip(&q).map(|(p, q)| 0.3 * p + 0.7 * q).collect();
        let all = [p, q, y];
        let gram: Vec<Vec<f64>> = all.iter().map(|a| all.iter().map(|b| dot(a, b)).collect()).collect();
        let (c, _, left) = solve(&gram, &[0, 1]).unwrap();
        assert!((c[0] - 0.3).abs() < 1e-12 && (c[1] - 0.7).abs() < 1e-12 && left < 1e-12);
        assert!(solve(&gram, &[0, 0]).is_none());
    }
}
