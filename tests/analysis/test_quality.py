"""Measures, compared with scipy, published values and known properties of synthetic pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import linalg, ndimage, stats

from intaglio.analysis.quality import intervals, measures

quick = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(pixels: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return [N, H, W] as pictures with three equal channels."""
    return np.repeat(pixels[..., None], 3, axis=-1).astype(np.float32)


def power_law(slope: float, n: int = 24, side: int = 96) -> NDArray[np.float64]:
    """Return Gaussian fields [n, side, side] whose power is frequency to the power `slope`."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = np.inf if slope < 0 else 1.0
    white = np.fft.fft2(draw(3).normal(size=(n, side, side)))
    return np.fft.ifft2(white * frequency ** (slope / 2)).real


def photos(seed: int, n: int = 4, side: int = 48) -> NDArray[np.float32]:
    """Return soft colour pictures with a little grain, within 0 to 1."""
    noise = draw(seed).normal(size=(n, side, side, 3))
    soft = ndimage.gaussian_filter(noise, (0, 2, 2, 0)) + 0.003 * noise
    return np.clip(0.5 + soft, 0.0, 1.0).astype(np.float32)


# Measures of detail.


def test_luma_is_rec_709() -> None:
    primaries = np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3)
    np.testing.assert_allclose(measures.luma(primaries).ravel(), [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("cycles", "share"), [(1 / 16, 0.0), (0.2, 0.0), (0.3, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_has_its_power_at_its_frequency(cycles: float, share: float, axis: int) -> None:
    side = 80
    wave = np.cos(2 * np.pi * cycles * (np.arange(side) + 0.5))
    if cycles == 0.5:
        wave = (-1.0) ** np.arange(side)
    picture = 0.5 + 0.4 * (wave[:, None] if axis == 0 else wave[None]) * np.ones((side, side))
    energy = measures.high_frequency_energy(grey(picture[None]))
    np.testing.assert_allclose(energy, share, atol=0.01)


def test_high_frequency_share_of_white_noise_is_the_area_beyond_the_circle() -> None:
    noise = 0.5 + 0.1 * draw(0).normal(size=(8, 128, 128))
    expected = 1 - np.pi * 0.25**2 / 4 / 0.25
    assert measures.high_frequency_energy(grey(noise)).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0, -3.0])
def test_slope_of_a_power_law(slope: float) -> None:
    pictures = grey(power_law(slope))
    assert measures.spectrum_slope(pictures).mean() == pytest.approx(slope, abs=0.15)


def test_slope_is_the_line_that_numpy_fits_to_the_mirrored_pictures_spectrum() -> None:
    fields = power_law(-2.0, n=3, side=32)
    mirrored = np.pad(fields, ((0, 0), (0, 32), (0, 32)), mode="symmetric")
    power = np.abs(np.fft.fft2(mirrored))[:, :32, :32] ** 2
    # The cosine transform is orthonormal; on the axes a mirrored pair counts twice.
    power[:, 0] /= 2
    power[:, :, 0] /= 2
    radius = np.hypot(*np.meshgrid(np.arange(32), np.arange(32))) / 2
    for field, row in zip(fields, power, strict=True):
        rings = [row[np.rint(radius) == r].mean() for r in range(1, 17)]
        expected = np.polyfit(np.log(np.arange(1, 17)), np.log(rings), 1)[0]
        measured = measures.spectrum_slope(grey(field[None]))
        np.testing.assert_allclose(measured, expected, rtol=1e-4)


def test_gradient_energy_of_planes_and_of_the_finest_checkerboard() -> None:
    y, x = np.mgrid[:20, :30]
    planes = grey(np.stack([0.01 * x, 0.02 * y, 0.01 * x + 0.02 * y, (x + y) % 2]))
    np.testing.assert_allclose(measures.gradient_energy(planes), [1e-4, 4e-4, 5e-4, 2.0], rtol=1e-5)


def test_laplacian_variance_is_that_of_scipys_convolution() -> None:
    images = photos(1)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    expected = [
        ndimage.convolve(image @ np.array(measures.LUMA), kernel, mode="reflect").var()
        for image in images
    ]
    np.testing.assert_allclose(measures.laplacian_variance(images), expected, rtol=1e-6)


def test_blur_is_scipys_on_each_channel() -> None:
    images = photos(2, n=2)
    blurred = measures.blur(images, 1.5)
    assert blurred.dtype == np.float32
    for image, result in zip(images, blurred, strict=True):
        for c in range(3):
            expected = ndimage.gaussian_filter(image[..., c], 1.5, mode="reflect")
            np.testing.assert_allclose(result[..., c], expected, atol=1e-6)


@quick
@given(seed=seeds)
def test_noise_raises_every_score_and_blur_lowers_it(seed: int) -> None:
    images = photos(seed)
    noisy = images + 0.05 * draw(seed + 1).normal(size=images.shape).astype(np.float32)
    plain, blurred = measures.detail(images), measures.detail(measures.blur(images, 1.0))
    assert len(plain) == 4
    for name, raised in measures.detail(noisy).items():
        assert (blurred[name] < plain[name]).all(), name
        assert (plain[name] < raised).all(), name


@quick
@given(seed=seeds, scale=st.floats(0.1, 4.0), shift=st.floats(-1.0, 1.0))
def test_brightness_changes_no_score_and_contrast_only_the_energies(
    seed: int, scale: float, shift: float
) -> None:
    images = photos(seed, n=2, side=32).astype(np.float64)
    plain, changed = measures.detail(images), measures.detail(images * scale + shift)
    for name in ("high_frequency_energy", "spectrum_slope"):
        np.testing.assert_allclose(changed[name], plain[name], rtol=1e-5)
    for name in ("gradient_energy", "laplacian_variance"):
        np.testing.assert_allclose(changed[name], plain[name] * scale**2, rtol=1e-5)


@quick
@given(seed=seeds)
def test_scores_are_each_pictures_own(seed: int) -> None:
    images = photos(seed, side=32)
    order = draw(seed).permutation(len(images))
    for name, scores in measures.detail(images).items():
        np.testing.assert_allclose(
            measures.detail(images[order])[name], scores[order], err_msg=name
        )
        np.testing.assert_allclose(measures.detail(images[:1])[name], scores[:1], err_msg=name)


def test_a_flat_picture_has_no_detail() -> None:
    for name, scores in measures.detail(np.full((1, 16, 24, 3), 0.3, np.float32)).items():
        np.testing.assert_allclose(scores, 0.0, atol=1e-9, err_msg=name)


# Measures of what pictures show.


def test_similarity_is_scipys_correlation_of_the_cells_means() -> None:
    a, b = photos(4), photos(5)
    found = measures.low_pass_similarity(measures.low_pass(a), measures.low_pass(b))
    for x, y, similarity in zip(a, b, found, strict=True):
        cells = [Image.fromarray(p @ np.float32(measures.LUMA)).reduce(6) for p in (x, y)]
        expected = stats.pearsonr(*(np.asarray(c).ravel() for c in cells)).statistic
        assert similarity == pytest.approx(expected, abs=1e-5)


def test_cells_take_any_size() -> None:
    assert measures.low_pass(photos(4, side=45)).shape == (4, measures.CELLS, measures.CELLS)


@quick
@given(seed=seeds)
def test_similarity_sees_shapes_and_no_fine_noise(seed: int) -> None:
    def same(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
        return measures.low_pass_similarity(measures.low_pass(a), measures.low_pass(b))

    images = grey(0.5 + 4 * ndimage.gaussian_filter(draw(seed).normal(size=(4, 48, 48)), (0, 4, 4)))
    noisy = images + 0.2 * draw(seed + 1).normal(size=images.shape).astype(np.float32)
    np.testing.assert_allclose(same(images, 0.5 * images + 0.1), 1.0, atol=1e-5)
    np.testing.assert_allclose(same(images, 1.0 - images), -1.0, atol=1e-5)
    assert (same(images, noisy) > 0.9).all()
    assert (same(images, np.full_like(images, 0.5)) == 0.0).all()


def drift(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    return measures.color_drift(measures.mean_lab(a), measures.mean_lab(b))


def test_color_drift_of_the_primaries() -> None:
    # Published CIELAB (D65) of sRGB's white, red, green and blue, and of 50 % grey.
    lab = np.array(
        [
            [100.0, 0.0, 0.0],
            [53.24, 80.09, 67.20],
            [87.73, -86.18, 83.18],
            [32.30, 79.19, -107.86],
            [53.39, 0.0, 0.0],
        ]
    )
    rgb = [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]]
    images = np.broadcast_to(np.array(rgb, np.float32)[:, None, None], (5, 2, 3, 3))
    black = np.zeros_like(images)
    expected = np.linalg.norm(lab, axis=1)
    np.testing.assert_allclose(drift(images, black), expected, atol=0.05)
    turned = drift(images, np.roll(images, 1, axis=0))
    np.testing.assert_allclose(turned, np.linalg.norm(lab - np.roll(lab, 1, 0), axis=1), atol=0.05)


def test_color_drift_is_of_the_mean_colour() -> None:
    images = photos(6)
    mirrored = images[:, ::-1, ::-1]
    np.testing.assert_allclose(drift(images, mirrored), 0.0, atol=1e-9)


def test_saturation_and_clipped_of_known_pixels() -> None:
    pixels = [[0.2, 0.5, 0.9], [1.001, 0.0, -0.001], [1.5, 0.5, 0.5], [0.4, -0.1, 0.4]]
    images = np.array(pixels, np.float32).reshape(1, 2, 2, 3)
    np.testing.assert_allclose(measures.saturation(images), (0.7 + 1.0 + 0.5 + 0.4) / 4, rtol=1e-6)
    np.testing.assert_array_equal(measures.clipped(images), 0.5)
    np.testing.assert_array_equal(measures.saturation(grey(np.ones((1, 4, 4)))), 0.0)


# Distances of sets of features.


@pytest.mark.parametrize("width", [1, 5, 12])
def test_frechet_is_the_formula_with_scipys_matrix_root(width: int) -> None:
    generator = draw(width)
    a = generator.normal(size=(80, width)) @ generator.normal(size=(width, width))
    b = generator.normal(size=(60, width)) @ generator.normal(size=(width, width)) + 0.5
    cov_a, cov_b = (np.atleast_2d(np.cov(x.T)) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    measured = measures.frechet(measures.moments(a), measures.moments(b))
    assert measured == pytest.approx(expected, rel=1e-6)


@quick
@given(seed=seeds, shift=st.floats(-3, 3))
def test_frechet_is_symmetric_and_sees_a_shift(seed: int, shift: float) -> None:
    features = draw(seed).normal(size=(30, 4))
    a, b = measures.moments(features), measures.moments(features + shift)
    assert measures.frechet(a, b) == pytest.approx(4 * shift**2, abs=1e-6)
    assert measures.frechet(b, a) == pytest.approx(measures.frechet(a, b), abs=1e-6)
    shuffled = measures.moments(draw(seed).permutation(features))
    assert measures.frechet(a, shuffled) == pytest.approx(0.0, abs=1e-6)


def brute_precision(real: NDArray[np.float64], fake: NDArray[np.float64], k: int) -> float:
    """Compute precision by the definition of arXiv 1904.06991, pair by pair."""
    inside = 0
    radii = [sorted(np.linalg.norm(real - r, axis=1))[k] for r in real]
    for f in fake:
        inside += any(np.linalg.norm(f - r) <= d for r, d in zip(real, radii, strict=True))
    return inside / len(fake)


@pytest.mark.parametrize("held", [1, 2**22])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_their_definition(
    k: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "DISTANCES", held)
    real, fake = draw(1).normal(size=(40, 3)), draw(2).normal(0.5, 0.6, size=(30, 3))
    precision, recall = (hits.mean() for hits in measures.precision_recall(real, fake, k))
    assert precision == brute_precision(real, fake, k)
    assert recall == brute_precision(fake, real, k)
    assert 0 < recall < precision


@quick
@given(seed=seeds)
def test_precision_and_recall_of_the_same_and_of_other_places(seed: int) -> None:
    real = draw(seed).normal(size=(25, 4))
    for fake, covered in ((draw(seed).permutation(real), 1.0), (real + 100.0, 0.0)):
        assert [set(hits) for hits in measures.precision_recall(real, fake)] == [{covered}] * 2


def test_collapsed_pictures_are_precise_and_recall_little() -> None:
    real = draw(0).normal(size=(200, 2))
    precision, recall = measures.precision_recall(real, 0.01 * draw(1).normal(size=(50, 2)))
    assert precision.mean() == 1.0
    assert recall.mean() < 0.05


# Too few samples.


def test_too_few_samples_are_said() -> None:
    def mean(x: NDArray[np.floating]) -> float:
        return float(x.mean())

    one, pair = np.ones(1), np.ones(2)
    for call in (
        lambda: intervals.mean_interval(one),
        lambda: intervals.paired_difference(one, one),
        lambda: intervals.bootstrap_difference(mean, one, one, 10, 0),
    ):
        with pytest.raises(intervals.TooFewSamples, match=r"samples, 1; .* needs 2"):
            call()
    with pytest.raises(intervals.TooFewSamples, match=r"8 samples of 8 features.* needs 9"):
        measures.moments(np.ones((8, 8)))
    few, many = np.ones((3, 2)), np.ones((9, 2))
    for sets in ((few, many), (many, few)):
        with pytest.raises(intervals.TooFewSamples, match="3 samples; 3 neighbours each need 4"):
            measures.precision_recall(*sets)
    with pytest.raises(ValueError, match="2 and 1 samples, which are not pairs"):
        intervals.paired_difference(pair, one)
    with pytest.raises(ValueError, match="2 and 1 samples, which are not pairs"):
        intervals.bootstrap_difference(mean, pair, one, 10, 0)
