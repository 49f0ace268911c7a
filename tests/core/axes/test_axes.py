"""Axes of a basis: their names and their prior, what is refused, and that the digest covers neither."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tinylora_edge import Basis, BasisError

NAMES = ("length", "formality", "tone = warm", "Ünïcode")


def prior(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size, size))
    return rng.standard_normal(size).astype(np.float32), (mixing @ mixing.T + np.eye(size)).astype(np.float32)


@pytest.fixture
def basis(tiny_basis) -> Basis:
    """With 4 values: 2 groups of u = 2."""
    return tiny_basis(u=2)


def with_prior(basis: Basis, mean: object, covariance: object) -> Basis:
    return dataclasses.replace(basis, prior_mean=mean, prior_covariance=covariance)


def test_neither_is_in_the_digest(basis):
    mean, covariance = prior(4)
    named = dataclasses.replace(basis, axes=NAMES, prior_mean=mean, prior_covariance=covariance)
    assert named.digest == basis.digest
    assert (named.has_prior, basis.has_prior) == (True, False)
    assert repr(named) == repr(basis)[:-1] + ", named axes, a prior)"
    v = [1, -2, 3, 4]
    np.testing.assert_array_equal(named.R(v), basis.R(v))


def test_the_position_of_an_axis(basis):
    named = dataclasses.replace(basis, axes=NAMES)
    assert [named.axis(name) for name in NAMES] == [0, 1, 2, 3]
    with pytest.raises(BasisError, match=r"no axis 'lenght': did you mean 'length'\?"):
        named.axis("lenght")
    with pytest.raises(BasisError, match=r"no axis 'zzz': the names are length, formality, tone = warm, Ün"):
        named.axis("zzz")
    with pytest.raises(BasisError, match="no axis 'length': the axes of this basis have no names"):
        basis.axis("length")


REFUSED_NAMES = {
    "too few": (NAMES[:3], "3 axes have names, but the vector has 4 values"),
    "too many": ((*NAMES, "e"), "5 axes have names, but the vector has 4"),
    "twice": ((*NAMES[:3], "length"), "axes 0 and 3 are both called 'length'"),
    "empty": ((*NAMES[:3], ""), "axis 3 is called ''.*1 to 64"),
    "too long": ((*NAMES[:3], "a" * 65), "axis 3.*1 to 64"),
    "a number": ((*NAMES[:3], 7), "axis 3 is called 7"),
    "a line feed": ((*NAMES[:3], "a\nb"), r"axis 3 is called 'a\\nb'.*printable"),
    "an escape": (("\x1b[2J", *NAMES[1:]), "axis 0.*printable"),
    "a space before": ((" a", *NAMES[1:]), "axis 0.*ends"),
    "a space behind": (("a ", *NAMES[1:]), "axis 0.*ends"),
}


@pytest.mark.parametrize(("names", "said"), REFUSED_NAMES.values(), ids=REFUSED_NAMES)
def test_refuses_names(basis, names, said):
    with pytest.raises(BasisError, match=said):
        dataclasses.replace(basis, axes=names)


def test_the_longest_name(basis):
    assert dataclasses.replace(basis, axes=("ü" * 64, *NAMES[1:])).axis("ü" * 64) == 0


def changed(array: np.ndarray, *entries: tuple[object, float]) -> np.ndarray:
    result = array.copy()
    for index, value in entries:
        result[index] = value
    return result


MEAN, COVARIANCE = prior(4)
REFUSED_PRIORS = {
    "a mean alone": (MEAN, None, "a mean, but no covariance"),
    "a covariance alone": (None, COVARIANCE, "a covariance, but no mean"),
    "a short mean": (MEAN[:3], COVARIANCE, r"mean.*\(3,\).*4 values.*\(4,\)"),
    "a small covariance": (MEAN, COVARIANCE[:3, :3], r"covariance.*\(3, 3\).*\(4, 4\)"),
    "a flat covariance": (MEAN, COVARIANCE.reshape(-1), r"covariance.*\(16,\).*\(4, 4\)"),
    "float64": (MEAN, COVARIANCE.astype(np.float64), "float64.*expected float32"),
    "NaN in the mean": (changed(MEAN, (2, np.nan)), COVARIANCE, r"entry \(2,\) of the mean.*nan"),
    "infinity": (MEAN, changed(COVARIANCE, ((1, 2), np.inf)), r"entry \(1, 2\) of the covariance.*inf"),
    "no variance": (MEAN, changed(COVARIANCE, ((1, 1), 0)), "axis 1 has variance 0"),
    "a negative variance": (MEAN, changed(COVARIANCE, ((3, 3), -2)), "axis 3 has variance -2"),
    "not symmetric": (MEAN, changed(COVARIANCE, ((0, 1), 9)), r"not symmetric: entry \(0, 1\) is 9"),
    "not definite": (
        MEAN,
        changed(np.eye(4, dtype=np.float32), ((0, 1), 2), ((1, 0), 2)),
        "not positive definite.*is 0 of",
    ),
    "singular": (MEAN, np.ones((4, 4), np.float32), "not positive definite"),
    "definite by rounding alone": (
        MEAN,
        changed(np.eye(4, dtype=np.float32), ((0, 1), 1 - 2.0**-24), ((1, 0), 1 - 2.0**-24)),
        r"is 1\.19e-07 of its axis's variance, and more than 2\.38e-07",
    ),
}


@pytest.mark.parametrize(("mean", "covariance", "said"), REFUSED_PRIORS.values(), ids=REFUSED_PRIORS)
def test_refuses_priors(basis, mean, covariance, said):
    with pytest.raises(BasisError, match=said):
        with_prior(basis, mean, covariance)


@pytest.mark.parametrize("scale", [1e-18, 1e-4, 1e4, 1e18])
def test_axes_of_any_scale(basis, scale):
    """A pivot counts against the variance of its own axis: one in other units is as definite."""
    units = np.array([1, scale, 1, 1])
    covariance = (COVARIANCE * np.outer(units, units)).astype(np.float32)
    assert with_prior(basis, MEAN, covariance).has_prior
    singular = np.outer(units, units).astype(np.float32)
    with pytest.raises(BasisError, match="not positive definite"):
        with_prior(basis, MEAN, singular)


def test_asymmetry_by_rounding_is_accepted(basis):
    near = changed(COVARIANCE, ((0, 1), np.nextafter(COVARIANCE[0, 1], np.float32(9))))
    assert near[0, 1] != near[1, 0]
    assert with_prior(basis, MEAN, near).has_prior


def test_a_prior_of_another_number_of_values_does_not_survive_a_change_of_u(basis):
    named = dataclasses.replace(basis, axes=NAMES)
    with pytest.raises(BasisError, match="4 axes have names, but the vector has 6"):
        dataclasses.replace(named, u=3)
