//! Formulas are found from samples of what they made, survive their own bytes, and refuse all else without a panic.

use super::number::{BF16, F32};
use super::*;
use crate::codec::tests::{Rng, element};
use proptest::prelude::*;

const SIDE: usize = 192;

fn spec(elem: Elem) -> Spec {
    Spec { elem, row_bytes: SIDE * elem.width() }
}

/// A base, and children that differ from it a little.
fn family(elem: Elem, children: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng(seed);
    let mut out = vec![Vec::new(); children + 1];
    for _ in 0..SIDE * SIDE {
        let b = rng.normal() * 0.05;
        out.iter_mut()
            .enumerate()
            .for_each(|(i, o)| element(elem, b + if i > 0 { rng.normal() * 3e-4 } else { 0.0 }, o));
    }
    out
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The share of values that the fitted mix hits.
fn hit(elem: Elem, child: &[u8], bases: &[&[u8]]) -> (Vec<usize>, f64) {
    let cut = child.len().min(BLOCK);
    let sample = Sample { block: 0, raw: &child[..cut], bases: bases.iter().map(|b| &b[..cut]).collect() };
    let elems = vec![elem; bases.len()];
    let (order, formula) = fit_mix(spec(elem), &elems, &[sample]).expect("a mix");
    let formula = Formula::read(&formula.write()).unwrap();
    let chosen: Vec<(Elem, &[u8])> = order.iter().map(|&i| (elem, bases[i])).collect();
    let mut out = vec![0; child.len()];
    formula.predict(spec(elem), 0, &chosen, &mut out).unwrap();
    let width = elem.width();
    let hits = out.chunks(width).zip(child.chunks(width)).filter(|(a, b)| a == b).count();
    (order, hits as f64 / (child.len() / width) as f64)
}

#[test]
fn mixes_as_people_write_them_are_found_to_the_bit() {
    let family = family(F32, 5, 3);
    let f: Vec<Vec<f32>> = family.iter().map(|m| floats(m)).collect();
    let all = |g: &dyn Fn(usize) -> f32| bytes((0..SIDE * SIDE).map(g));
    let parents = |ids: &[usize]| -> Vec<&[u8]> { ids.iter().map(|&i| &family[i][..]).collect() };
    let n = [120.0f32, 75.0, 310.0, 42.0, 199.0];
    let total: f32 = n.iter().sum();
    let cases: Vec<(&str, Vec<u8>, Vec<usize>)> = vec![
        ("average", all(&|i| (f[1][i] + f[2][i]) / 2.0), vec![1, 2, 0]),
        ("weights", all(&|i| 0.3 * f[1][i] + 0.7 * f[2][i]), vec![1, 2]),
        ("mean of five", all(&|i| (f[1][i] + f[2][i] + f[3][i] + f[4][i] + f[5][i]) / 5.0), vec![1, 2, 3, 4, 5]),
        ("client sizes", all(&|i| (0..5).fold(0.0, |s, k| s + (n[k] / total) * f[k + 1][i])), vec![1, 2, 3, 4, 5]),
        (
            "client sizes in f64",
            all(&|i| (0..5).fold(0.0, |s, k| s + (n[k] as f64 / total as f64) * f[k + 1][i] as f64) as f32),
            vec![1, 2, 3, 4, 5, 0],
        ),
        ("tasks", all(&|i| f[0][i] + 0.4 * (f[1][i] - f[0][i]) + 0.4 * (f[2][i] - f[0][i])), vec![1, 2, 0]),
        ("tasks apart", all(&|i| f[0][i] + 0.3 * ((f[1][i] - f[0][i]) + (f[2][i] - f[0][i]))), vec![1, 2, 0]),
        ("interpolation", all(&|i| f[1][i] + 0.25 * (f[2][i] - f[1][i])), vec![2, 1]),
        ("negated task", all(&|i| f[0][i] - (f[1][i] - f[0][i])), vec![0, 1]),
    ];
    for (name, child, ids) in cases {
        let (order, share) = hit(F32, &child, &parents(&ids));
        assert!(share > 0.995, "{name}: {share} with {order:?}");
    }
    let shuffled = all(&|i| 0.2 * f[3][i] + 0.5 * f[1][i] + 0.3 * f[2][i]);
    assert!(hit(F32, &shuffled, &parents(&[1, 2, 3])).1 > 0.99);
}

#[test]
fn unrelated_and_ordinary_children_are_no_mix() {
    let family = family(F32, 3, 5);
    let bases = [&family[0][..BLOCK], &family[1][..BLOCK]];
    let sample = Sample { block: 0, raw: &family[2][..BLOCK], bases: bases.to_vec() };
    assert!(fit_mix(spec(F32), &[F32; 2], &[sample]).is_none());
}

#[test]
fn a_cast_is_exact() {
    let base = &family(F32, 0, 9)[0];
    let mut child = vec![0; base.len() / 2];
    Formula::cast().predict(spec(BF16), 0, &[(F32, base)], &mut child).unwrap();
    for (c, b) in child.as_chunks().0.iter().zip(floats(base)) {
        assert!((f32::from_bits((u16::from_le_bytes(*c) as u32) << 16) / b - 1.0).abs() <= 1.0 / 256.0);
    }
    let mut back = vec![0; base.len()];
    Formula::cast().predict(spec(F32), 0, &[(BF16, &child)], &mut back).unwrap();
    assert_eq!(back.as_chunks::<4>().0[7][2..], child.as_chunks::<2>().0[7]);
}

fn blocks<'a>(elem: Elem, child: &'a [u8], base: &'a [u8], base_width: usize) -> Vec<Sample<'a>> {
    let per_block = BLOCK / elem.width() * base_width;
    let pairs = child.chunks(BLOCK).zip(base.chunks(per_block)).enumerate();
    pairs.map(|(i, (raw, base))| Sample { block: i as u64, raw, bases: vec![base] }).collect()
}

#[test]
fn a_merged_adapter_is_found_and_an_ordinary_update_is_not() {
    let base = &family(F32, 1, 11)[0];
    let mut rng = Rng(4);
    let mut factor = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
    let (b, a) = (factor(SIDE * 4), factor(4 * SIDE));
    let delta = |i: usize, j: usize| (0..4).map(|k| b[i * 4 + k] * a[k * SIDE + j]).sum::<f32>();
    let child = bytes(floats(base).iter().enumerate().map(|(at, w)| w + 2e-4 * delta(at / SIDE, at % SIDE)));
    let samples = blocks(F32, &child, base, 4);
    let mut each = |f: &mut dyn FnMut(&Sample)| -> Result<(), ()> {
        samples.iter().for_each(f);
        Ok(())
    };
    let found = fit_low_rank(spec(F32), F32, SIDE, &samples, &mut each).unwrap().expect("low rank");
    let stored = found.write();
    assert!(stored.len() < 4 * 2 * SIDE * 3, "{}", stored.len());
    let found = Formula::read(&stored).unwrap();
    let mut off = 0u64;
    for s in &samples {
        let mut out = vec![0; s.raw.len()];
        found.predict(spec(F32), s.block, &[(F32, s.bases[0])], &mut out).unwrap();
        off += crate::codec::distance(F32, &out, s.raw) as u64 * 1000;
    }
    assert!(off < 3 * 1000 * samples.len() as u64, "{off}");
    let other = family(F32, 1, 11);
    let samples = blocks(F32, &other[1], &other[0], 4);
    let mut each = |f: &mut dyn FnMut(&Sample)| -> Result<(), ()> {
        samples.iter().for_each(f);
        Ok(())
    };
    assert!(fit_low_rank(spec(F32), F32, SIDE, &samples, &mut each).unwrap().is_none());
}

#[test]
fn int8_rows_are_found_without_their_scales() {
    let base = &family(F32, 0, 21)[0];
    let rows: Vec<Vec<f32>> = floats(base).chunks(SIDE).map(|r| r.to_vec()).collect();
    let quantize = |r: &Vec<f32>| -> Vec<u8> {
        let scale = r.iter().fold(0.0f32, |a, b| a.max(b.abs())) / 127.0;
        r.iter().map(|w| (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8).collect()
    };
    let child: Vec<u8> = rows.iter().flat_map(quantize).collect();
    let spec = spec(quantized::ELEM);
    let mut fit = QuantizedFit::new(spec, F32, child.len() as u64).unwrap();
    let samples = blocks(quantized::ELEM, &child, base, 4);
    samples.iter().for_each(|s| fit.see(F32, s));
    let formula = Formula::read(&Formula::Quantized(fit.finish().unwrap()).write()).unwrap();
    let mut out = vec![0; child.len()];
    formula.predict(spec, 0, &[(F32, base)], &mut out).unwrap();
    assert!(out == child);
}

#[test]
fn a_transpose_is_exact() {
    let base = &family(BF16, 0, 2)[0][..SIDE * 50 * 2];
    let at = |v: &[u8], i: usize| [v[2 * i], v[2 * i + 1]];
    let child: Vec<u8> = (0..SIDE * 50).flat_map(|i| at(base, i % 50 * SIDE + i / 50)).collect();
    let mut out = vec![0; child.len()];
    let formula = Formula::read(&Formula::Transposed(SIDE).write()).unwrap();
    formula.predict(spec(BF16), 0, &[(BF16, base)], &mut out).unwrap();
    assert!(out == child);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_refused_or_predict_something(kind in 0..6u8, mut body: Vec<u8>, block: u64, len in 0..600usize, widths in prop::collection::vec(0..4usize, 0..8)) {
        body.insert(0, kind);
        let elems = [number::F64, F32, BF16, quantized::ELEM];
        let Ok(formula) = Formula::read(&body) else { return Ok(()) };
        let base = vec![0x3E; len];
        let bases: Vec<(Elem, &[u8])> = widths.iter().map(|&w| (elems[w], &base[..])).collect();
        for elem in elems {
            let _ = formula.predict(spec(elem), block, &bases, &mut vec![0; len]);
        }
    }
}
