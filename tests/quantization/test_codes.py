"""Codes are those of torchao's formulas, and a search gives the values back better than they do."""

import ml_dtypes
import numpy as np
import pytest

from altclip_jax.quantization.codes import int4_codes, int8_codes, pack

BF16 = ml_dtypes.bfloat16


RNG = np.random.default_rng(0)
MATRICES = {
    "normal": RNG.standard_normal((48, 256), np.float32),
    "heavy": np.float32(RNG.standard_t(3, (48, 256))),
    "shifted": np.float32(RNG.standard_normal((48, 256)) * 0.02 + 0.1),
    "uniform": RNG.random((48, 256), np.float32),
}


def int4_values(found, group):
    steps = found.codes.astype(np.float32).reshape(*found.scales.shape, group) - 8
    values = steps * np.float32(found.scales)[..., None] + np.float32(found.zero_points)[..., None]
    return values.reshape(found.codes.shape)


def rounded(values, dtype):
    return np.asarray(values, np.float32).astype(dtype).astype(np.float32)


def tinygemm(values, group, dtype):
    """The formula of torchao's int4_weight_only: scale (max - min) / 15, zero point min + 8 scale."""
    codes, scales, zeros = [], [], []
    for row in values:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = np.maximum((part.max() - part.min()) / np.float32(15), np.float32(1e-6))
            zeros.append(rounded(part.min() + scale * 8, dtype))
            scales.append(rounded(scale, dtype))
            codes.append((part - (zeros[-1] - 8 * scales[-1])) / scales[-1])
    shape = (len(values), -1)
    return np.reshape(codes, shape), np.reshape(scales, shape), np.reshape(zeros, shape)


def assert_codes(found, exact, low, high):
    """Whole numbers next to the exact ones; where these are half way, the rounding of float32 decides."""
    exact = np.clip(exact, low, high)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_int4_without_a_search_is_tinygemm(name, group, dtype):
    values = MATRICES[name]
    found = int4_codes(values, group, search=False, scale_dtype=dtype)
    exact, scales, zeros = tinygemm(values, group, dtype)
    assert found.scales.dtype == found.zero_points.dtype == dtype
    np.testing.assert_array_equal(np.float32(found.scales), scales)
    np.testing.assert_array_equal(np.float32(found.zero_points), zeros)
    assert_codes(found.codes, exact, 0, 15)


@pytest.mark.parametrize("name", MATRICES)
def test_int8_without_a_search_is_symmetric_by_row(name):
    values = MATRICES[name]
    scales = np.maximum(np.abs(values).max(1, keepdims=True) / np.float32(127.5), np.finfo(np.float32).eps)
    found = int8_codes(values, search=False)
    np.testing.assert_allclose(found.scales, scales, rtol=2e-7)
    assert found.codes.dtype == np.int8
    assert_codes(found.codes, values / scales, -128, 127)


@pytest.mark.parametrize("name", MATRICES)
def test_a_search_is_worse_nowhere_and_better_on_the_whole(name):
    values = MATRICES[name]

    def errors(search, rows):
        eight, four = int8_codes(values, search=search), int4_codes(values, 64, search=search)
        found = eight.codes * eight.scales, int4_values(four, 64)
        return [np.square(made - values).reshape(rows, -1).sum(1) for made in found]

    for plain, searched in zip(errors(False, len(values)), errors(True, len(values)), strict=True):
        assert (searched <= plain * (1 + 1e-5)).all()
    (plain8, plain4), (searched8, searched4) = errors(False, 1), errors(True, 1)
    assert searched4 < (0.99 if name == "uniform" else 0.92) * plain4
    assert searched8 < (1.0001 if name == "uniform" else 1.0) * plain8


def test_rows_of_one_value_come_back():
    values = np.repeat(np.float32([[0], [1], [-3], [1e-9]]), 64, axis=1)
    eight, four = int8_codes(values), int4_codes(values, 32)
    np.testing.assert_allclose(eight.codes * eight.scales, values, rtol=4e-3, atol=1e-7)
    np.testing.assert_allclose(int4_values(four, 32), values, rtol=4e-3, atol=1e-6)


def test_the_first_of_two_codes_is_in_the_low_four_bits():
    codes = np.uint8([[1, 15, 0, 7], [8, 2, 3, 4]])
    np.testing.assert_array_equal(pack(codes), [[0xF1, 0x70], [0x28, 0x43]])
