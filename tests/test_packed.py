"""The packed word: what its bits mean, its rounding, what is not finite; and the random bits."""

import functools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amsgrad_jax import _packed, _rounding
from amsgrad_jax._rule import Moments

pack, unpack = jax.jit(_packed.pack), jax.jit(_packed.unpack)
EVERY_19_BITS = jnp.arange(2**19, dtype=jnp.uint32)  # nu has the lower 19, mu the upper ones


def meaning(word):
    """The moments of a word in float64, written out from the table in the module."""
    exponent, mantissa = word >> 23 & 255, word >> 19 & 15
    s = 2.0 ** (exponent - 127)
    root = (1 + mantissa / 16) * s
    nu_code, size_code = word >> 8 & 2047, word & 255
    size = (1 + size_code % 16 / 16) * 2.0 ** (size_code // 16 - 8) - 2**-8
    nu = (nu_code * s / 1024) ** 2
    overflows = lambda moment: moment if moment < 2.0**128 else math.inf
    return (-size if word >> 31 else size) * s, overflows(nu), overflows(root**2)


# Words of finite moments whose parts are all normal float32: roots from 2**-45 to below 2**64.
words = st.builds(
    lambda sign, root, rest: sign << 31 | root << 19 | rest,
    st.integers(0, 1),
    st.integers((127 - 45) << 4, ((127 + 64) << 4) - 1),
    st.integers(0, 2**19 - 1),
)
many_words = hnp.arrays(np.uint32, 64, elements=words)
any_floats = hnp.arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)).map(
    lambda raw: raw.view(np.float32)
)


def as_words(moments, bits=_packed.NEAREST):
    return np.asarray(pack(Moments(*moments), bits))


# What the bits mean.


@hypothesis.given(many_words)
@hypothesis.example(
    np.resize(np.uint32([0x30000000, 0x5F000000, 0x5F780000, 0xDF7FFFFF, 0x5F800000]), 64)
)
def test_words_mean_what_the_table_says(some):
    got = np.asarray(unpack(some), np.float64).T
    expected = np.array([meaning(int(word)) for word in some])
    np.testing.assert_allclose(got, expected, rtol=3e-7)


def test_a_word_of_zero_is_nothing_seen():
    assert [float(moment) for moment in unpack(jnp.uint32(0))] == [0, 0, 0]
    assert as_words([0.0, 0.0, 0.0]) == 0
    assert as_words([-0.0, 0.0, 0.0]) in (0, 2**31)
    # Where nu has underflowed, nothing else counts.
    for mu in (1e-25, -1e-25):
        assert [float(moment) for moment in unpack(as_words([mu, 0.0, 0.0]))] == [0, 0, 0]


@hypothesis.given(many_words)
def test_what_is_unpacked_is_packed_as_the_same_word(some):
    back = as_words(unpack(some))
    # A minus before a zero is no part of the meaning.
    same = (back == some) | ((some % 256 == 0) & ((back ^ some) == 2**31))
    assert np.all(same)


# Rounding.


def close_to_range():
    """Moments as they occur: nu up to the maximum, mu up to 119 times its root."""
    rng = np.random.default_rng(0)
    root = np.exp2(rng.uniform(-40, 40, 100_000))
    nu = (root * rng.uniform(0, 1, root.size)) ** 2
    mu = root * 119 * rng.uniform(-1, 1, root.size) ** 5
    return [np.float32(moment) for moment in (mu, nu, root**2)]


def test_to_nearest_within_the_bounds():
    mu, nu, nu_max = (moment.astype(np.float64) for moment in close_to_range())
    got = [np.asarray(moment, np.float64) for moment in unpack(as_words(close_to_range()))]
    root = np.sqrt(nu_max)
    assert np.max(np.abs(np.sqrt(got[2]) / root - 1)) <= 1 / 32
    # Half a unit of 2**-10 of a scale that is at most 1/31 above the root.
    unit = 2**-10 * root * 32 / 31
    assert np.max(np.abs(np.sqrt(got[1]) - np.sqrt(nu)) / unit) <= 0.5
    away = np.abs(got[0] - mu)
    assert np.all(away <= (np.abs(mu) + 2**-8 * root * 32 / 31) / 32)


def test_bounds_hold_for_all_random_bits():
    moments = close_to_range()
    mu, nu, nu_max = (moment.astype(np.float64) for moment in moments)
    for bits in (np.uint32(0), np.uint32(2**32 - 1), np.uint32(12345 << 16)):
        got = [np.asarray(m, np.float64) for m in unpack(as_words(moments, bits))]
        root = np.sqrt(nu_max) * 32 / 31
        assert np.max(np.abs(np.sqrt(got[1]) - np.sqrt(nu)) / (2**-10 * root)) <= 1.001
        assert np.all(np.abs(got[0] - mu) <= (np.abs(mu) + 2**-8 * root) / 16)


@pytest.mark.parametrize("share", [0.001, 0.37, 0.99, 3.1416, 101.7, -0.5])
def test_the_mean_over_all_bits_is_mu(share):
    like = jnp.ones(EVERY_19_BITS.shape)
    got = unpack(pack(Moments(share * like, like, like), EVERY_19_BITS << 13)).mu
    mean = np.mean(np.asarray(got, np.float64))
    assert mean == pytest.approx(share, abs=2**-19 * (abs(share) + 2**-8))


@pytest.mark.parametrize("root", [0.0, 0.0004, 0.0117, 0.5, 0.7213, 0.99])
def test_the_mean_over_all_bits_is_the_root_of_nu(root):
    like = jnp.ones(EVERY_19_BITS.shape)
    got = np.asarray(unpack(pack(Moments(like, root**2 * like, like), EVERY_19_BITS)).nu)
    # A float32 root has 24 bits, the random ones are 19 behind a unit of 2**-10.
    assert np.sqrt(got.astype(np.float64)).mean() == pytest.approx(root, abs=2**-24 + 2**-29)
    # Its square is above by f(1-f) of the squared unit, where f is the fraction.
    fraction = 1024 * root % 1
    excess = fraction * (1 - fraction) * 2**-20
    assert got.astype(np.float64).mean() == pytest.approx(root**2 + excess, abs=2**-23)


@hypothesis.given(any_floats, any_floats)
def test_the_word_of_a_maximum_is_the_maximum_of_words(a, b):
    a, b = (np.where(np.isnan(values), np.float32(np.inf), np.abs(values)) for values in (a, b))
    zero = np.zeros_like(a)
    first = as_words([zero, zero, a])
    both = np.asarray(pack(Moments(zero, zero, b), _packed.NEAREST, first))
    want = as_words([zero, zero, np.maximum(a, b)])
    np.testing.assert_array_equal(both >> 19, want >> 19)
    rounded = np.asarray(_packed.rounded_max(np.maximum(a, b)))
    np.testing.assert_array_equal(rounded, unpack(both).nu_max)


# What is not finite, or beyond the range.


@pytest.mark.parametrize(
    ("moments", "is_seen"),
    [
        ((math.nan, math.nan, math.nan), True),
        ((math.nan, 1.0, 1.0), True),
        ((math.inf, math.inf, math.inf), True),
        ((-math.inf, math.inf, math.inf), True),
        ((1.0, math.nan, math.nan), True),
        ((1e29, math.inf, math.inf), False),
        ((0.0, 1.0, math.inf), False),
    ],
)
def test_nan_is_seen_and_an_infinite_maximum_kept(moments, is_seen):
    for bits in (np.uint32(0), _packed.NEAREST, np.uint32(2**32 - 1)):
        first = pack(Moments(*moments), bits)
        mu, nu, nu_max = unpack(first)
        assert bool(jnp.isnan(nu_max)) is is_seen
        assert bool(jnp.isnan(mu / nu_max)) is is_seen
        assert not np.isfinite(nu_max)
        # Another step: nothing of it becomes finite, and no NaN comes in that was not there.
        mu, nu, nu_max = unpack(pack(Moments(0.9 * mu + 0.1, nu, nu), bits, first))
        assert not np.isfinite(nu_max)
        assert bool(jnp.isnan(nu_max)) is is_seen
        assert bool(jnp.isnan(mu / nu_max)) is is_seen


@pytest.mark.optimized
def test_the_root_of_an_infinite_maximum_is_infinite():
    """Also where XLA takes √(x·x) for |x|."""
    zero = jnp.zeros(4)
    root = jax.jit(lambda nu_max: jnp.sqrt(unpack(pack(Moments(zero, zero, nu_max))).nu_max))
    np.testing.assert_allclose(root(jnp.array([np.inf, 2.0**126, 1, 0])), [np.inf, 2.0**63, 1, 0])


def test_out_of_range_is_the_end_of_the_range():
    mu, _, nu_max = unpack(as_words([[1e6, -1e6], [1.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(mu, [248 - 2**-8, 2**-8 - 248])
    np.testing.assert_array_equal(nu_max, 1)
    # What squares of float32 reach, and a root that is no normal number's.
    _, _, ends = unpack(as_words([[0.0] * 3, [0.0] * 3, [3.2e38, 1.2e-38, 1e-45]]))
    assert ends[0] == pytest.approx(3.2e38, rel=0.07)
    assert ends[1] <= 2.0**-125
    assert ends[2] == 0


# The random bits.


def halves(bits):
    """What mu and what nu is rounded with, in [0, 1)."""
    return np.asarray(bits >> 13, np.float64) / 2**19, np.asarray(bits % 2**19, np.float64) / 2**19


def bits(shape, leaf="a", count=0):
    salt = _rounding.salt([jax.tree_util.DictKey(leaf)])
    return _rounding.random_bits(jnp.zeros(shape), salt, _rounding.in_step(jnp.int32(count)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("steps", [100, 1000, 10_000])
def test_the_bits_of_one_element_fall_evenly_over_the_steps(steps, which):
    one = lambda t: _rounding.random_bits(jnp.zeros(3), np.uint32(9), _rounding.in_step(t))
    of_steps = np.sort(halves(jax.jit(jax.vmap(one))(jnp.arange(steps)))[which][:, 1])
    gaps = np.diff(of_steps, append=of_steps[0] + 1)
    assert gaps.max() < 3 / steps  # of independent bits the largest gap of 1000 is about 7/1000


def test_the_bits_of_elements_leaves_and_moments_are_independent():
    of_leaf = bits((256, 256))
    assert len(np.unique(of_leaf)) > 65_500  # of 65,536: equal ones are chance, half of one
    (one, two), (other, _) = halves(of_leaf), halves(bits((256, 256), "b"))
    pairs = [(one, other), (one, two), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1])]
    pairs += [(two[1:], two[:-1]), (two[:, 1:], two[:, :-1]), (one[2:], two[:-2])]
    for first, second in pairs:
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.size)
    # Equidistributed in pairs: chi-squared with 1,023 degrees of freedom.
    for first, second in pairs[:4]:
        counts, _, _ = np.histogram2d(first.ravel(), second.ravel(), 32, [[0, 1], [0, 1]])
        mean = first.size / 1024
        assert np.sum((counts - mean) ** 2 / mean) < 1023 + 5 * np.sqrt(2 * 1023)


@functools.partial(jax.jit, static_argnames="share")
def errors(share, count):
    like = jnp.ones((256, 256))
    random = _rounding.random_bits(like, np.uint32(1), _rounding.in_step(count))
    moments = unpack(pack(Moments(share * like, share**2 * like, like), random))
    return moments.mu - share, jnp.sqrt(moments.nu) - share


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_the_mean_over_the_elements_of_an_array_is_the_value(count):
    for error in errors(0.3141, jnp.int32(count)):
        error = np.asarray(error, np.float64)
        assert abs(error.mean()) < 4 * error.std() / 256  # by chance once in 16,000


@hypothesis.given(any_floats, hnp.arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
@hypothesis.example(np.resize(np.float32([0, -0.0, 1e-45, 1.2e-38, 3.4e38, 1]), 64), np.uint32([0]))
@hypothesis.example(np.resize(np.float32([3.4e38, -3.4e38]), 64), np.uint32([2**32 - 1]))
def test_bfloat16_is_one_of_the_two_neighbours(values, random):
    got = np.asarray(jax.jit(_rounding.to_bfloat16)(values, random)).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(values))
    exact = values.astype(np.float64)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(got[~finite & ~np.isnan(values)], exact[np.isinf(values)])
    # Neighbours on the grid of 8 binary digits, in float64; below float32's normal numbers 0.
    _, exponent = np.frexp(np.maximum(np.abs(exact[finite]), 2.0**-126))
    unit = np.ldexp(1.0, exponent - 8)
    below = np.floor(np.abs(exact[finite]) / unit) * unit
    above = np.minimum(np.ceil(np.abs(exact[finite]) / unit) * unit, 2.0**128 - 2.0**120)
    size = np.abs(got[finite])
    subnormal = np.abs(exact[finite]) < 2.0**-126
    assert np.all((size == below) | (size == above) | (subnormal & (size <= 2.0**-126)))
    assert np.all(np.signbit(got[finite]) == np.signbit(exact[finite]))
