"""Averages of users' vectors: the mean, clipping, the noise and what it is worth."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tinylora_edge import MicroVector, MissingExtraError, NonFiniteError, VectorError, average, privacy
from tinylora_edge.average import kept, sensitivity, shrunk
from tinylora_edge.axes import Prior


def vector(*values: float, **options: object) -> MicroVector:
    return MicroVector(np.array(values, np.float32)[:, None], **options)


def users(count: int, size: int = 13, norm: float = 0.2) -> list[MicroVector]:
    rng = np.random.default_rng(count)
    drawn = rng.standard_normal((count, size))
    drawn *= norm * rng.uniform(0.5, 1.5, (count, 1)) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return [vector(*row) for row in drawn]


class TestMean:
    def test_of_equal_weights(self):
        given = users(7)
        expected = np.mean([v.values.astype(np.float64) for v in given], axis=0).astype(np.float32)
        np.testing.assert_allclose(average(given).values, expected, rtol=0, atol=1e-8)
        assert average(given).values.shape == (13, 1)

    def test_of_weights(self):
        given = users(3)
        weights = [1.0, 2.0, 5.0]
        expected = sum(w * v.values.astype(np.float64) for w, v in zip(weights, given, strict=True)) / 8
        np.testing.assert_allclose(average(given, weights=weights).values, expected, atol=1e-8)
        scaled = average(given, weights=[w * 1e300 for w in weights])
        np.testing.assert_allclose(scaled.values, expected, atol=1e-8)

    def test_of_one_is_itself(self):
        assert (average(users(1)).values == users(1)[0].values).all()

    def test_only_the_longer_ones_are_clipped(self):
        mean = average([vector(3.0, 4.0), vector(0.0, 0.5)], clip=1.0)
        np.testing.assert_allclose(mean.values[:, 0], [0.3, 0.65], atol=1e-7)
        zeros = average([vector(0.0, 0.0), vector(0.0, 0.0)], clip=1.0)
        assert not zeros.values.any()

    def test_its_sequence_is_one_above_the_highest(self):
        given = [vector(0.1, sequence=3), vector(0.2, sequence=9)]
        assert average(given).sequence == 10
        assert average(given, sequence=4).sequence == 4
        with pytest.raises(VectorError, match=r"sequence 65535.*new stream"):
            average([vector(0.1, sequence=65535)])

    def test_its_dtype_is_theirs_where_they_agree(self):
        assert average([vector(0.1, dtype="bf16"), vector(0.2, dtype="bf16")]).dtype == "bf16"
        assert average([vector(0.1, dtype="bf16"), vector(0.2)]).dtype == "fp32"
        assert average([vector(0.1), vector(0.2)], dtype="fp16").dtype == "fp16"


class TestNoise:
    def test_has_the_deviation_that_it_says(self):
        """4,000 values of a mean of zeros: chi-square for the size, Kolmogorov-Smirnov for the shape."""
        given = [vector(*[0.0] * 4000)] * 4
        drawn = average(given, clip=0.5, noise_multiplier=2.0, seed=1).values[:, 0].astype(np.float64)
        deviation = 2.0 * 2 * 0.5 / 4
        assert 0.01 < stats.chi2(4000).cdf((drawn**2).sum() / deviation**2) < 0.99
        assert stats.kstest(drawn / deviation, "norm").pvalue > 0.01

    def test_is_added_to_the_mean(self):
        given = users(50)
        clean = average(given, clip=0.2).values
        noisy = average(given, clip=0.2, noise_multiplier=1e-3, seed=1).values
        assert 0 < np.abs(noisy - clean).max() < 1e-3 * 2 * 0.2 / 50 * 5

    def test_comes_from_the_operating_system_unless_a_test_gives_a_seed(self):
        given = users(3)

        def noisy(seed: int | None) -> bytes:
            return average(given, clip=1.0, noise_multiplier=1.0, seed=seed).values.tobytes()

        assert noisy(1) == noisy(1) != noisy(2)
        assert noisy(None) != noisy(None)

    @pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
    def test_no_user_moves_the_mean_by_more_than_the_sensitivity(self, weights):
        """The worst case is reached: a user at the border, taken away or turned round."""
        clip, heavy = 0.3, vector(0.0, 0.3)
        others = [vector(0.1, 0.0), vector(0.0, -5.0)]
        given = [others[0], heavy, others[1]]

        def moved(other: MicroVector) -> float:
            means = [
                average([others[0], v, others[1]], weights=weights, clip=clip).values for v in (heavy, other)
            ]
            return float(np.linalg.norm(means[0] - means[1]))

        for adjacency, other in (("replace-one", vector(0.0, -7.0)), ("add-or-remove", vector(0.0, 0.0))):
            bound = sensitivity(clip, count=len(given), weights=weights, adjacency=adjacency)
            assert moved(other) == pytest.approx(bound, rel=1e-6)
        bound = sensitivity(clip, count=len(given), weights=weights)
        for seed in range(20):
            drawn = np.random.default_rng(seed).standard_normal(2) * (0.1 + seed / 10)
            assert moved(vector(*drawn)) <= bound * (1 + 1e-6)

    def test_of_users_who_are_there_alone_is_bounded_too(self):
        """Divided by those who are there, one more user moves the mean by at most 2 C / n."""
        for count in (2, 3, 10):
            for seed in range(20):
                rng = np.random.default_rng(seed)
                given = [vector(*rng.standard_normal(2) * 10) for _ in range(count)]
                gap = average(given, clip=0.3).values - average(given[1:], clip=0.3).values
                assert np.linalg.norm(gap) <= sensitivity(0.3, count=count) * (1 + 1e-6)


class TestAccounting:
    @pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (1.0, 1e-5), (8.0, 1e-3)])
    def test_delta_of_the_multiplier_is_the_one_asked_for(self, epsilon, delta):
        """Against theorem 8 of Balle and Wang, computed here with scipy alone."""
        z = privacy.noise_multiplier(epsilon, delta)
        normal = stats.norm
        found = normal.cdf(1 / (2 * z) - epsilon * z)
        found -= math.exp(epsilon) * normal.cdf(-1 / (2 * z) - epsilon * z)
        assert found == pytest.approx(delta, rel=1e-6)
        assert privacy.epsilon(z, delta) == pytest.approx(epsilon, rel=1e-6)

    def test_rounds_compose_as_googles_accountant_says(self):
        from dp_accounting import GaussianDpEvent, SelfComposedDpEvent, pld

        accountant = pld.PLDAccountant()
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(4.0), 10))
        assert privacy.epsilon(4.0, 1e-5, rounds=10) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
        z = privacy.noise_multiplier(2.0, 1e-5, rounds=10)
        assert privacy.epsilon(z, 1e-5, rounds=10) == pytest.approx(2.0, rel=1e-6)

    def test_more_noise_is_more_private(self):
        found = [privacy.epsilon(z, 1e-5) for z in (0.01, 0.5, 1.0, 2.0, 100.0, 1e6)]
        assert found == sorted(found, reverse=True)
        assert math.isfinite(found[0])

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: privacy.epsilon(0.0, 1e-5), "0.0, not above 0"),
            (lambda: privacy.epsilon(math.nan, 1e-5), "nan"),
            (lambda: privacy.epsilon(1.0, 0.0), "delta is above 0 and below 1, not 0.0"),
            (lambda: privacy.epsilon(1.0, 1.0), "delta .* not 1.0"),
            (lambda: privacy.epsilon(1.0, 1e-5, rounds=0), "at least 1 round, not 0"),
            (lambda: privacy.noise_multiplier(0.0, 1e-5), "epsilon is finite and above 0, not 0.0"),
            (lambda: privacy.noise_multiplier(math.inf, 1e-5), "inf"),
        ],
    )
    def test_refuses_what_means_nothing(self, call, message):
        with pytest.raises(VectorError, match=message):
            call()

    def test_without_its_extra_it_says_how_to_get_it(self):
        code = "import sys; sys.modules['dp_accounting'] = None; from tinylora_edge import privacy as p; "
        done = subprocess.run(
            [sys.executable, "-c", f"{code}p.epsilon(1.0, 1e-5)"], capture_output=True, text=True, check=False
        )
        assert 'pip install "tinylora-edge[private]"' in done.stderr
        assert issubclass(MissingExtraError, ImportError)


class TestPrior:
    """A noisy mean moves towards the prior's mean, as a linear Gaussian posterior says."""

    prior = Prior(np.array([0.3, -0.1]), np.array([[0.04, 0.01], [0.01, 0.02]]))

    def test_equals_the_closed_form(self):
        given = [vector(0.3, 0.4), vector(-0.1, 0.2), vector(0.0, 0.1)]
        options = {"clip": 0.4, "noise_multiplier": 0.7, "seed": 5}
        noisy = average(given, **options).values[:, 0].astype(np.float64)
        deviation = 0.7 * sensitivity(0.4, count=3)
        precision = np.linalg.inv(self.prior.covariance) + np.eye(2) / deviation**2
        shift = np.linalg.solve(self.prior.covariance, self.prior.mean) + noisy / deviation**2
        found = average(given, prior=self.prior, **options).values
        assert found.shape == (2, 1)
        np.testing.assert_allclose(found[:, 0], np.linalg.solve(precision, shift), atol=1e-7)
        gain = np.linalg.inv(precision) / deviation**2
        assert kept(deviation, self.prior) == pytest.approx(np.trace(gain) / 2)

    def test_the_less_noise_the_more_is_kept(self):
        noisy = np.array([1.0, -1.0])
        np.testing.assert_allclose(shrunk(noisy, 1e-6, self.prior), noisy, atol=1e-6)
        np.testing.assert_allclose(shrunk(noisy, 1e6, self.prior), self.prior.mean, atol=1e-6)
        assert kept(1e-6, self.prior) == pytest.approx(1)
        assert kept(1e6, self.prior) == pytest.approx(0, abs=1e-6)

    def test_it_comes_nearer_to_the_mean_without_noise(self):
        """Groups of users that want what the prior says, with what their group shares."""
        rng = np.random.default_rng(0)
        root = np.linalg.cholesky(self.prior.covariance)
        gaps = []
        for seed in range(40):
            shared = self.prior.mean + root @ rng.standard_normal(2)
            given = [vector(*(shared + 0.05 * rng.standard_normal(2))) for _ in range(10)]
            exact = average(given, clip=1.0).values
            options = {"clip": 1.0, "noise_multiplier": 1.5, "seed": seed}
            found = [average(given, prior=p, **options).values for p in (None, self.prior)]
            gaps.append([float(((f - exact) ** 2).sum()) for f in found])
        without, with_prior = np.mean(gaps, axis=0)
        assert with_prior < 0.5 * without

    def test_what_is_refused(self):
        given = [vector(0.1, 0.2)] * 2
        with pytest.raises(VectorError, match="this one gets none: add noise"):
            average(given, prior=self.prior)
        three = [vector(0.1, 0.2, 0.3)] * 2
        with pytest.raises(VectorError, match="the prior is of 2 values, but the vectors have 3"):
            average(three, prior=self.prior, clip=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "nothing to average"),
        ([vector(1.0), vector(1.0, 2.0)], {}, r"vector 1 has shape \(2, 1\), but vector 0 has \(1, 1\)"),
        ([vector(1.0)] * 2, {"weights": [1.0]}, "2 vectors need as many weights, not 1"),
        ([vector(1.0)] * 2, {"weights": [1.0, 0.0]}, "weight 1 is 0.0"),
        ([vector(1.0)] * 2, {"weights": [math.nan, 1.0]}, "weight 0 is nan"),
        ([vector(1.0)] * 2, {"weights": [math.inf, 1.0]}, "weight 0 is inf"),
        ([vector(1.0)], {"clip": 0.0}, "norm above 0, not to 0.0"),
        ([vector(1.0)], {"clip": math.nan}, "not to nan"),
        ([vector(1.0)] * 2, {"noise_multiplier": -1.0, "clip": 1.0}, "at least 0, not -1.0"),
        ([vector(1.0)] * 2, {"noise_multiplier": math.nan, "clip": 1.0}, "not nan"),
        ([vector(1.0)] * 2, {"noise_multiplier": 1.0}, "noise needs vectors of bounded norm"),
        ([vector(1.0)], {"noise_multiplier": 1.0, "clip": 1.0}, "one vector cannot hide"),
        ([vector(1.0)] * 2, {"adjacency": "both"}, "unknown adjacency 'both'"),
        ([vector(1.0)] * 2, {"adjacency": "x", "noise_multiplier": 1.0, "clip": 1.0}, "adjacency 'x'"),
        ([vector(1.0)], {"dtype": "fp8"}, "fp8"),
        ([vector(1.0)], {"sequence": 1 << 16}, "65536"),
    ],
)
def test_what_cannot_be_averaged_is_refused(given, options, message):
    with pytest.raises(VectorError, match=message):
        average(given, **options)


def test_a_mean_that_does_not_fit_its_dtype():
    with pytest.raises(NonFiniteError, match="fp16"):
        average([vector(1e5), vector(1e5)], dtype="fp16")
