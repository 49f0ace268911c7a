"""Learning directions: what behaviours share, against what is planted; and on the real model, in small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import support
import torch

from tinylora_edge import TrainError, load_bundle
from tinylora_edge.tasks.behaviours import Behaviour
from tinylora_edge.train import learn as learning
from tinylora_edge.train import learner
from tinylora_edge.train.adapter import Adapter
from tinylora_edge.train.learn import Learned, Lesson, learned_directions, prior_of, slopes
from tinylora_edge.train.learner import Learner, divergences

D = 24
PLANE = np.linalg.qr(np.random.default_rng(7).standard_normal((D, 2)))[0].T
FLAT = np.eye(D)

BEHAVIOURS = (
    Behaviour("pirate", "Talk like a pirate."),
    Behaviour("capitals", "WRITE EVERYTHING IN CAPITAL LETTERS."),
    Behaviour("french", "Answer in French."),
)


def uneven() -> np.ndarray:
    """A Fisher information whose directions cost from .01 to 100 nats, none of them along an axis."""
    turned = np.linalg.qr(np.random.default_rng(8).standard_normal((D, D)))[0]
    scores = turned * np.logspace(-1, 1, D)[:, None]
    return scores.T @ scores


def planted(count: int, fisher: np.ndarray = FLAT) -> np.ndarray:
    """Slopes whose steps -F^-1 g lie in the plane: float32 [count, D]."""
    places = np.random.default_rng(0).standard_normal((count, 2)) * (3, 1)
    return (-(places @ PLANE) @ fisher).astype(np.float32)


@pytest.mark.parametrize("fisher", [FLAT, uneven()], ids=["flat", "uneven"])
def test_a_planted_plane_is_found(fisher: np.ndarray) -> None:
    slopes = planted(20, fisher)
    found = learned_directions(slopes, fisher, 2)
    assert (found.directions.shape, found.directions.dtype) == ((2, D), np.float32)
    gram = found.directions @ fisher @ found.directions.T
    np.testing.assert_allclose(gram, np.eye(2), atol=1e-4)
    steps = -np.linalg.solve(fisher, slopes.T).T
    np.testing.assert_allclose(found.places @ found.directions, steps, atol=1e-2)
    np.testing.assert_allclose(found.shares, 1, atol=1e-4)
    assert found.energy[0] > found.energy[1], "the first direction holds the most"
    assert found.energy.sum() == pytest.approx(1, abs=1e-4)


def test_a_behaviour_that_asks_for_everything_counts_as_one() -> None:
    slopes = np.zeros((10, D), np.float32)
    slopes[:9, 0], slopes[9, 1] = 1, 1000
    first = learned_directions(slopes, FLAT, 1).directions[0]
    assert abs(first[0]) > 0.99


def test_few_samples_make_no_direction_free() -> None:
    fisher = learning.information(np.random.default_rng(4).standard_normal((3, D)), 3)
    assert np.linalg.eigvalsh(fisher)[0] > 0.05 * np.trace(fisher) / D


def test_the_prior_is_that_of_the_places() -> None:
    rng = np.random.default_rng(2)
    places = rng.standard_normal((500, 3)) * (0.2, 0.1, 0.0001) + (0.1, -0.2, 0)
    mean, covariance = prior_of(places)
    assert mean[0] > 0.05 > -0.1 > mean[1]
    assert np.array_equal(covariance, covariance.T)
    assert (np.linalg.eigvalsh(covariance.astype(np.float64)) > 0).all()
    assert covariance[2, 2] > 1e-4, "a direction that few behaviours need is not ruled out"
    huge = prior_of(places * 1e6)
    assert (np.abs(huge[0]) <= 1).all(), "a step is shortened to a unit of effect at most"


def test_slopes_that_teach_nothing_are_refused() -> None:
    slopes = planted(3)
    slopes[1, 0] = np.nan
    with pytest.raises(TrainError, match="not finite: the model computes infinities or NaN"):
        learned_directions(slopes, FLAT, 2)


def test_how_users_differ_is_learned_from_their_vectors() -> None:
    basis = support.bases_with(support.random_basis(blocks=1)).basis(rank=2)
    places = np.random.default_rng(3).standard_normal((30, 2)) * (3, 1) + (1, 0)
    plane = np.linalg.qr(np.random.default_rng(5).standard_normal((basis.size, 2)))[0].T
    values = places @ plane
    found = learning.learn_from(basis, values, 2).projection
    directions = found.stored.reshape(2, -1).astype(np.float64)
    own = np.linalg.lstsq(directions.T, values.T, rcond=None)[0].T
    np.testing.assert_allclose(own @ directions, values, atol=1e-4, err_msg="another plane")
    np.testing.assert_allclose((own**2).mean(0), 1, atol=1e-4, err_msg="a unit is the root mean square")
    np.testing.assert_allclose(found.prior.mean, own.mean(0), atol=1e-4)


def test_vectors_that_teach_too_little_are_refused() -> None:
    basis = support.bases_with(support.random_basis(blocks=1)).basis(rank=2)
    same = np.ones((5, basis.size))
    refused = (
        (same[:2], 2, "2 users' vectors cannot teach 2"),
        (same, 2, "differ in fewer than 2"),
        (same, basis.size + 1, f"directions are 1 to {basis.size}, the numbers of R"),
    )
    for few, count, match in refused:
        with pytest.raises(TrainError, match=match):
            learning.learn_from(basis, few, count)
    tiled = support.random_basis(blocks=1)
    with pytest.raises(TrainError, match="not all entries of a square R"):
        learning.learn_from(tiled, same[:, :2], 2)


def lesson() -> Lesson:
    def tokens(*ids: int) -> np.ndarray:
        return np.array(ids, np.int32)

    prompted = [tokens(*range(60), *answer) for answer in ((101, 102), (103,), (104, 105, 106))]
    unprompted = [tokens(*range(100, 140), *answer) for answer in ((1, 2), (5,), (3, 4, 6))]
    return Lesson("x", prompted, unprompted, [tokens(7, 8, 9), tokens(3), tokens(3, 4)])


@pytest.fixture
def pupil(tiny_bundle: Path) -> Iterator[Learner]:
    basis = load_bundle(tiny_bundle).basis(numbers=13)
    model = models.tiny_model("llama")
    with Adapter(model, basis) as adapter:
        learner = Learner(model, adapter, temperature=1.0, workers=2)
        yield learner
        learner.close()


def divergence(pupil: Learner, lesson: Lesson, v: np.ndarray) -> torch.Tensor:
    """The KL of each question from the prompted model, whole rows one at a time: in nats, summed."""
    found = []
    for prompted, unprompted, answer in zip(lesson.prompted, lesson.unprompted, lesson.answers, strict=True):
        with torch.no_grad():
            pupil.adapter.set(0 * v)
            teacher = torch.log_softmax(logits(pupil.model, prompted, answer), -1)
            pupil.adapter.set(v)
            own = torch.log_softmax(logits(pupil.model, unprompted, answer), -1)
        found.append((teacher.exp() * (teacher - own)).sum())
    pupil.adapter.set(0 * v)
    return torch.stack(found)


def logits(model: Any, prompt: np.ndarray, answer: np.ndarray) -> torch.Tensor:
    row = torch.tensor([[*prompt.tolist(), *answer.tolist()]])
    return model(row).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("plain", [True, False], ids=["from hidden states", "from logits"])
def test_slopes_are_the_changes_of_each_question(pupil: Learner, plain: bool) -> None:
    """Against central differences of whole rows, by 13 numbers; each question has its own."""
    if not plain:
        pupil.head = None
    found, basis = slopes(pupil, lesson(), seed=(1,)), pupil.adapter.basis
    assert found.tokens.tolist() == [3, 1, 2]
    zero = np.zeros(13, np.float32)
    assert found.before == pytest.approx(float(divergence(pupil, lesson(), zero).sum()) / 6, rel=1e-4)
    h = 0.01
    for index in range(0, 13, 4):
        unit = np.eye(13, dtype=np.float32)[index]
        change = divergence(pupil, lesson(), h * unit) - divergence(pupil, lesson(), -h * unit)
        own = [basis.projection.adjoint(each)[index] for each in found.divergence]
        np.testing.assert_allclose(own, change / (2 * h), rtol=0.05, atol=2e-3)
    assert (np.abs(found.score).sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("chunk", [1 << 24, 150, 1], ids=["whole", "three rows", "a row"])
def test_it_is_the_divergence_and_its_gradient(chunk, monkeypatch):
    """Over the vocabulary, against autograd in float64."""
    monkeypatch.setattr(learner, "_CHUNK", chunk)
    torch.manual_seed(0)
    h, teacher, weight = torch.randn(7, 8), torch.randn(7, 8), torch.randn(50, 8)
    own = h.clone().requires_grad_(True)
    found = divergences(own, teacher, weight)
    (found * torch.arange(1.0, 8)).sum().backward()
    exact = h.double().requires_grad_(True)
    rows = (torch.log_softmax(each @ weight.double().T, -1) for each in (teacher.double(), exact))
    target, wanted = rows
    expected = (target.exp() * (target - wanted)).sum(-1)
    (expected * torch.arange(1.0, 8)).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def run(bundle: Path, folder: Path, **options: Any) -> Learned:
    with pytest.MonkeyPatch.context() as few:
        few.setattr(learning, "QUESTIONS", 2)
        few.setattr(learning, "TOKENS", 6)
        return learning.learn(bundle, folder, **{"behaviours": BEHAVIOURS, "directions": 2, **options})


@pytest.fixture(scope="module")
def learned(smollm2_bundle, tmp_path_factory):
    """What was learned, in which folder, and what was reported. The run was interrupted once."""
    folder, figures = tmp_path_factory.mktemp("learned") / "sub" / "folder", []

    def stop(row: dict[str, Any]) -> None:
        figures.append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(smollm2_bundle, folder, report=stop)
    assert len(list(folder.glob("*.npz"))) == 1
    return run(smollm2_bundle, folder, report=figures.append), folder, figures


def test_what_is_learned_acts_on_the_leading_two_directions(smollm2_bundle, learned):
    made = learned[0].projection
    assert (made.kind, made.size, made.rank) == ("learned", 2, 2)
    assert made.modules == load_bundle(smollm2_bundle).factors.modules
    assert made.prior.mean.shape == (2,)


def test_each_behaviour_is_reported_once_and_not_done_again(smollm2_bundle, learned):
    made, folder, figures = learned
    assert [name for name, _, _ in made.behaviours] == ["pirate", "capitals", "french"]
    before, held = np.array([each[1:] for each in made.behaviours]).T
    assert (before > 0.05).all()
    assert (held > 0.2).all(), "2 directions hold most of what 3 behaviours ask for"
    assert 0.5 < made.energy.sum() <= 1.0001
    assert [each["name"] for each in figures] == ["pirate", "capitals", "french"]
    assert [(each["done"], each["of"]) for each in figures] == [(1, 3), (2, 3), (3, 3)]
    again: list[Any] = []
    repeated = run(smollm2_bundle, folder, report=again.append)
    assert (repeated.projection.descriptor, again) == (made.projection.descriptor, [])


# Which is what the model's own template says where nobody says anything.
NOTHING = Behaviour("nothing", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")


def test_a_teacher_that_changes_nothing_is_refused(smollm2_bundle, tmp_path):
    with pytest.raises(TrainError, match=r"'nothing' changes nothing: its answers are 0\.00\d\d nats"):
        run(smollm2_bundle, tmp_path, behaviours=[NOTHING, *BEHAVIOURS[:1]])


FEW = Behaviour("few", "Be brief.", [], ["What is a river?"])
LONG = Behaviour("long", "word " * 9000)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"behaviours": BEHAVIOURS[:1]}, "1 behaviours cannot teach 2 directions"),
    ({"directions": 841}, "directions are 1 to 840, the numbers of R, not 841"),
    ({"behaviours": [FEW, *BEHAVIOURS]}, "'few' has 1 questions, and 2 are asked"),
    ({"behaviours": [LONG, *BEHAVIOURS]}, "the longest prompt has .* context of"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=["few", "numbers", "questions", "long"])
def test_what_cannot_be_learned_is_refused(smollm2_bundle, tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        run(smollm2_bundle, tmp_path / "state", **options)
    assert not list(tmp_path.rglob("*.npz"))
