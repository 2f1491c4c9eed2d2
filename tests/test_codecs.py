"""Each codec over the whole of float32: its bound, its expectation, what is not finite."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amsgrad_jax import _rounding, codecs

INF = np.uint32(0x7F800000)
SMALLEST_NORMAL = np.float64(np.finfo(np.float32).tiny)
LARGEST = np.finfo(np.float32).max
EDGES = np.float32([0, 1e-45, 1.1e-38, 1.2e-38, 1e-16, 1, 1 + 2**-7, 1 + 2**-8, 3.5e9, LARGEST])
every_average = pytest.mark.parametrize("name", ["BFLOAT16", "UNSIGNED16", "RATIO8"])

words = st.integers(0, 2**32 - 1)
any_bits = hnp.arrays(np.uint32, 64, elements=words)
finite_nonnegative = hnp.arrays(np.uint32, 64, elements=st.integers(0, int(INF) - 1)).map(
    lambda raw: raw.view(np.float32)
)


@functools.partial(jax.jit, static_argnums=0)
def encode_and_decode(codec, values, bits):
    return codec.decode(codec.encode(values, bits))


def roundtrip(codec, values, bits=_rounding.NEAREST):
    """In float64, for numpy compares subnormal numbers as XLA for CPU would not."""
    return np.asarray(encode_and_decode(codec, values, bits)).astype(np.float64)


# Averages, which are rounded by chance.


@pytest.mark.parametrize(
    ("name", "digits"), [("BFLOAT16", 8), ("UNSIGNED16", 9)], ids=["BFLOAT16", "UNSIGNED16"]
)
@hypothesis.given(finite_nonnegative, any_bits)
@hypothesis.example(np.resize(EDGES, 64), np.full(64, 2**32 - 1, np.uint32))
@hypothesis.example(np.resize(EDGES, 64), np.zeros(64, np.uint32))
def test_floats_are_rounded_to_a_neighbour_of_fewer_digits(name, digits, values, bits):
    codec = getattr(codecs, name)
    got = roundtrip(codec, values, bits)
    # The neighbours on the grid of that many binary digits, by float64 arithmetic.
    exact = values.astype(np.float64)
    _, exponent = np.frexp(np.maximum(exact, SMALLEST_NORMAL))
    unit = np.ldexp(1.0, exponent - digits)
    below, above = np.floor(exact / unit) * unit, np.ceil(exact / unit) * unit
    in_range = np.floor(LARGEST / np.ldexp(1.0, 128 - digits)) * np.ldexp(1.0, 128 - digits)
    assert np.all((got == below) | (got == np.minimum(above, in_range)))
    normal = exact >= SMALLEST_NORMAL
    assert np.all(np.abs(got - exact)[normal] < 2.0 ** (1 - digits) * exact[normal])
    assert np.all(np.abs(got - exact)[~normal] < 2.0 ** (-125 - digits))


@hypothesis.given(any_bits, any_bits)
def test_bfloat16_keeps_signs_infinities_and_nans(raw, bits):
    values = raw.view(np.float32)
    got = roundtrip(codecs.BFLOAT16, values, bits)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(values))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(values))
    np.testing.assert_array_equal(np.signbit(got)[~np.isnan(values)], raw[~np.isnan(values)] >> 31)


@hypothesis.given(finite_nonnegative)
def test_nearest_bits_round_as_numpy_does(values):
    ours = roundtrip(codecs.BFLOAT16, values)
    numpys = values.astype(jnp.bfloat16).astype(np.float64)
    # A tie goes up here, to an even number there, and a finite value stays finite here.
    exact = values.astype(np.float64)
    same = (ours == numpys) | (ours - exact == exact - numpys) | np.isinf(numpys)
    assert np.all(same)


@hypothesis.given(hnp.arrays(np.float32, 64, elements=st.floats(-119, 119, width=32)), any_bits)
@hypothesis.example(np.resize(np.float32([0, -0.0, 1e-30, 119, -119, 7.3]), 64), np.zeros(64, "u4"))
def test_ratio8_is_within_its_bound(values, bits):
    got = roundtrip(codecs.RATIO8, values, bits)
    exact = values.astype(np.float64)
    # The last term is the rounding of the float32 sum with 2**-9.
    allowed = (np.abs(exact) + 2**-9) / 8 + 2**-23 * (np.abs(exact) + 2**-9)
    assert np.all(np.abs(got - exact) <= allowed)
    assert np.all(got * exact >= 0)
    assert np.all(got[exact == 0] == 0)


@pytest.mark.parametrize("name", ["UNSIGNED16", "RATIO8"])
def test_what_is_not_finite_is_seen(name):
    got = roundtrip(getattr(codecs, name), jnp.array([jnp.nan, jnp.inf, -jnp.nan]))
    assert not np.any(np.isfinite(got))


def test_ratios_out_of_range_are_the_largest_with_their_sign():
    np.testing.assert_allclose(
        roundtrip(codecs.RATIO8, jnp.array([1e3, -1e3, 3e38])), [120, -120, 120], rtol=1e-4
    )


@every_average
def test_the_mean_over_all_bits_is_the_value(name):
    codec = getattr(codecs, name)
    every = jnp.arange(2**20, dtype=jnp.uint32) << 12
    for value in (1e-3, 0.37, 1.0 + 2**-12, 3.14159, 101.7):
        decoded = roundtrip(codec, jnp.full(every.shape, value, jnp.float32), every)
        # 2**-20 is the share of one of these bits, of at most an eighth of the value.
        np.testing.assert_allclose(decoded.mean(), np.float32(value), rtol=2**-20)


@every_average
def test_the_mean_over_the_elements_of_an_array_is_the_value(name):
    codec = getattr(codecs, name)
    hashed = _rounding.hashed_index(jnp.zeros((256, 256)), np.uint32(1), jnp.int32(0))
    for count in (0, 1, 1000):
        bits = _rounding.at_step(hashed, jnp.int32(count), _rounding.GOLDEN)
        values = jnp.full(bits.shape, 0.3141, jnp.float32)
        errors = roundtrip(codec, values, bits) - 0.3141
        standard_error = errors.std() / np.sqrt(errors.size)
        assert abs(errors.mean()) < 4 * standard_error  # by chance once in 16,000


@pytest.mark.parametrize("irrational", [_rounding.GOLDEN, _rounding.SILVER])
def test_the_bits_of_one_element_fall_evenly_over_the_steps(irrational):
    steps = jnp.arange(1000)
    bits = np.sort(_rounding.at_step(jnp.uint32(12345), steps, irrational))
    gaps = np.diff(bits.astype(np.float64), append=bits[0] + 2.0**32) / 2**32
    assert gaps.max() < 3 / 1000  # of independent bits the largest gap is about 7/1000


def test_the_bits_of_elements_and_leaves_are_independent():
    like, count = jnp.zeros((64, 64)), jnp.int32(0)
    one, other = (
        np.asarray(
            _rounding.hashed_index(like, _rounding.salt([jax.tree_util.DictKey(name)]), count)
        )
        for name in ("a", "b")
    )
    assert len(np.unique(one)) > 4090  # of 4096; a handful of collisions is chance
    for first, second in [(one, other), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1])]:
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.size)
    equal_bits = np.unpackbits((one ^ other).view(np.uint8)).mean()
    assert abs(equal_bits - 0.5) < 5 * 0.5 / np.sqrt(32 * one.size)


# The maximum, which is rounded to nearest.


def test_log8_maps_every_decoded_code_to_itself():
    codes = jnp.arange(256, dtype=jnp.uint8)
    decoded = codecs.LOG8.decode(codes)
    assert np.all(np.diff(np.asarray(decoded, np.float64)) > 0)
    assert decoded[0] == 0
    np.testing.assert_array_equal(codecs.LOG8.encode(decoded, _rounding.NEAREST), codes)


@hypothesis.given(finite_nonnegative)
@hypothesis.example(np.resize(EDGES, 64))
def test_log8_is_within_its_bound(values):
    got, exact = roundtrip(codecs.LOG8, values), values.astype(np.float64)
    inside = (exact >= 2.0**-53) & (exact <= 3.5e9)
    assert np.all(np.abs(got - exact)[inside] <= 0.143 * exact[inside])
    assert np.all(got[exact < 2.0**-53] == 0)
    assert np.all(np.abs(got[exact > 3.6e9] - 3.579e9) < 1e6)


@hypothesis.given(any_bits, any_bits)
def test_log8_of_a_maximum_is_the_maximum_of_codes(raw_a, raw_b):
    a, b = (np.abs(raw.view(np.float32)) for raw in (raw_a, raw_b))
    a, b = (np.where(np.isnan(values), np.float32(np.inf), values) for values in (a, b))
    encode = lambda values: codecs.LOG8.encode(jnp.asarray(values), _rounding.NEAREST)
    np.testing.assert_array_equal(encode(np.maximum(a, b)), jnp.maximum(encode(a), encode(b)))


def test_log8_has_the_largest_code_for_what_is_not_finite():
    codes = codecs.LOG8.encode(jnp.array([jnp.inf, jnp.nan, LARGEST]), _rounding.NEAREST)
    np.testing.assert_array_equal(codes, 255)
