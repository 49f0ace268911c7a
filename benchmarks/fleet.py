"""What a fleet's prior is worth: does the next user need 5 clicks for what others needed 20 for?

Users have hidden wishes about form, length and register, three each, that a rule can check. Each of 100
clicks on 20 pairs of the base's answers to prompts of his own. From their posteriors follows the fleet's
prior: mean and covariance of what they want, a step of expectation maximization a round, for which each
user sends 13 + 91 numbers, clipped in the metric of the prior. With privacy it is one round with Gaussian
noise. Then come other users, who begin with it. Two populations: `mixed`, where each wish has a share of
its own of those who want it and of those who want the opposite, and `agreed`, where all of those who care
want the same.

Two measures, in standard deviations of what the user likes, over the base:

  slope    the gain to first order in v, from held-out answers of the base and their scores: of 100 users
  answers  the gain of real greedy answers to held-out prompts, of few users, and of system prompts

Scores are gradients in torch, on the dequantized weights: what a device estimates by finite differences.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _subjects import learned
from numpy.typing import NDArray

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.prior import Prior
from tinylora_edge.runtime.learning.posterior import FARTHEST, Posterior
from tinylora_edge.system import cores
from tinylora_edge.tasks import Preamble, Sample
from tinylora_edge.tasks.general import load_general
from tinylora_edge.train import Adapter, Group, Learner
from tinylora_edge.train.model import load_model

Array = NDArray[np.float64]

TOKENS, CLICKED, SAMPLES = 48, 40, 4  # of an answer; prompts that users click on; answers to each
USERS, CLICKS, SLIPS = 100, 20, 0.1  # of the fleet; of each; share of the clicks that go to the wrong button
ROUNDS, CLIP, DELTA = 5, 4.0, 1e-5
SEEDS = range(5)
ASKED, ANSWERING = 12, 10  # held-out prompts that are answered, and users of a seed whose vectors answer


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"\w[\w'\u2019-]*", text)


WISHES: dict[str, tuple[Callable[[str], float], str, str]] = {
    "brief": (lambda t: -math.log(3 + len(words(t))), "Answer in a few words.", "Answer in detail."),
    "plain": (
        lambda t: -sum(map(len, words(t))) / (1 + len(words(t))),
        "Use short, simple words.",
        "Use long, learned words.",
    ),
    "commas": (lambda t: t.count(",") / (1 + len(words(t))), "Use many commas.", "Use no commas."),
    "lively": (lambda t: "!" in t, "Be enthusiastic!", "Be sober."),
    "asks": (lambda t: "?" in t, "End with a question.", "Never ask a question."),
    "first person": (lambda t: bool(re.search(r"\bI\b", t)), "Speak of yourself as I.", "Never say I."),
    "addresses": (
        lambda t: bool(re.search(r"\byou", t, re.IGNORECASE)),
        "Speak to the reader as you.",
        "Never speak to the reader.",
    ),
    "numbers": (lambda t: bool(re.search(r"\d", t)), "Use numbers and digits.", "Use no digits."),
    "contractions": (
        lambda t: bool(re.search(r"\w['\u2019](s|t|re|m|ll|ve)\b", t)),
        "Use contractions, like it's.",
        "Use no contractions.",
    ),
}
"""By name: the rule, and the system prompts that ask for it and for its opposite."""


def checked(text: str) -> list[float]:
    """Return what the rules find in a text."""
    return [float(rule(text)) for rule, *_ in WISHES.values()]


@dataclass(frozen=True)
class Answers:
    """The base's answers to prompts.

    Attributes:
        prompt: int [answers].
        wishes: float64 [answers, wishes], in standard deviations within a prompt.
        score: float64 [answers, 13], d log p / d v at the base.
    """

    prompt: NDArray[np.int64]
    wishes: Array
    score: Array

    def slope(self, wish: Array) -> Array:
        """Return the slope of how much a user likes answers, in v: float64 [13]. It is unbiased."""
        likes, found = self.wishes @ wish, np.zeros(self.score.shape[1])
        for prompt in set(self.prompt):
            mine = self.prompt == prompt
            found += (likes[mine] - likes[mine].mean()) @ self.score[mine] / (mine.sum() - 1)
        return found / len(set(self.prompt))


def drawn(bundle: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the base's answers to prompts, with their scores."""
    found = load_bundle(bundle)
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
        prompts = [llm.encode(sample)[0] for sample in samples]
        with llm.batch(samples, TOKENS) as batch:
            answers = batch.generate(prompts, samples=SAMPLES, max_tokens=TOKENS, temperature=1.0, seed=7)
        texts = [llm.vocabulary.decode(each.tokens.tolist()) for each in answers]
    adapter = Adapter(model := load_model(found.base), learned(found.bases))
    learner, rows = Learner(model, adapter, temperature=1.0, workers=cores()), []
    for number, prompt in enumerate(prompts):
        mine = [i for i, each in enumerate(answers) if each.prompt == number]
        tokens = [answers[i].tokens.astype(np.int32) for i in mine]
        group = Group(np.array(prompt, np.int32), tokens, np.ones(len(mine), np.float32))
        (every,) = learner.logprobs([group])
        for i, part in zip(mine, every.split([len(each) for each in tokens]), strict=True):
            (score,) = torch.autograd.grad(part.sum(), [adapter.v], retain_graph=i != mine[-1])
            rows.append({"prompt": number, "text": texts[i], "score": [round(x, 4) for x in score.tolist()]})
    learner.close()
    return rows


def read(rows: Sequence[dict[str, Any]], units: Array | None = None) -> tuple[Answers, Array]:
    """Return answers, and the standard deviation of each wish that they are in."""
    prompt = np.array([row["prompt"] for row in rows])
    found = np.array([checked(row["text"]) for row in rows])
    for number in set(prompt):
        found[prompt == number] -= found[prompt == number].mean(0)
    units = found.std(0) if units is None else units
    return Answers(prompt, found / units, np.array([row["score"] for row in rows])), units


def wish(population: str, seed: int, user: int) -> Array:
    """Return how much a user likes each wish, float64 [wishes], of length 1: three are not 0."""
    shares = np.random.default_rng((seed, 0)).random(len(WISHES))
    if population == "agreed":
        shares = shares.round()
    generator = np.random.default_rng((seed, 1, user))
    found, chosen = np.zeros(len(WISHES)), generator.choice(len(WISHES), 3, replace=False)
    signs = np.where(generator.random(3) < shares[chosen], 1, -1)
    found[chosen] = signs * generator.exponential(1, 3)
    return np.asarray(found / np.linalg.norm(found))


def clicked(
    answers: Answers, likes: Array, clicks: int, key: Sequence[int], prior: Prior | None
) -> Posterior:
    """Return the posterior of a user who compared pairs of answers; a tie is no click."""
    generator = np.random.default_rng((*key, 2))
    posterior, pleases = Posterior(answers.score.shape[1], prior), answers.wishes @ likes
    for prompt in generator.permutation(CLICKED)[:clicks]:
        a, b = generator.choice(np.flatnonzero(answers.prompt == prompt), 2, replace=False)
        if pleases[a] == pleases[b]:
            continue
        better, worse = (a, b) if (pleases[a] > pleases[b]) != (generator.random() < SLIPS) else (b, a)
        posterior.prefer(answers.score[better], answers.score[worse], (0.0, 0.0), np.zeros(posterior.n))
    return posterior


def noise_of(epsilon: float) -> float:
    """Return the z with which one Gaussian release is (epsilon, DELTA) private (Balle and Wang, 2018)."""

    def spent(z: float) -> float:
        def below(x: float) -> float:
            return (1 + math.erf(x / math.sqrt(2))) / 2

        return below(0.5 / z - epsilon * z) - math.exp(epsilon) * below(-0.5 / z - epsilon * z)

    low, high = 0.05, 50.0
    for _ in range(60):
        z = math.sqrt(low * high)
        low, high = (z, high) if spent(z) > DELTA else (low, z)
    return high


def fleet_prior(posteriors: Sequence[Posterior], prior: Prior, rounds: int, z: float, seed: int) -> Prior:
    """Return the prior of users' vectors after rounds of expectation maximization, with noise z CLIP / N."""
    root, n, now = np.linalg.cholesky(prior.covariance), posteriors[0].n, prior
    inverse, (i, j) = np.linalg.inv(root), np.triu_indices(n)
    scale = np.where(i == j, 1.0, math.sqrt(2))  # the length of a row is that of the matrix
    generator = np.random.default_rng((seed, 3))
    for _ in range(rounds):
        sent = []
        for posterior in posteriors:
            posterior.prior = now
            mean, covariance = (part[:n] for part in posterior.solved())
            z_mean = inverse @ (mean - prior.mean)
            moment = inverse @ covariance[:, :n] @ inverse.T - np.eye(n) + np.outer(z_mean, z_mean)
            row = np.concatenate([z_mean, scale * moment[i, j]])
            sent.append(row * min(1.0, CLIP / float(np.linalg.norm(row))))
        total = np.sum(sent, axis=0) + (generator.normal(0, z * CLIP, len(sent[0])) if z else 0)
        total = total / len(sent)
        moment = np.zeros((n, n))
        moment[i, j] = moment[j, i] = total[n:] / scale
        values, axes = np.linalg.eigh(moment + np.eye(n) - np.outer(total[:n], total[:n]))
        covariance = axes * np.maximum(values, 0.05) @ axes.T
        now = Prior(prior.mean + root @ total[:n], root @ covariance @ root.T)
    return now


def vectors_of(answers: Answers, shipped: Prior, population: str, seed: int, users: int) -> dict[str, Array]:
    """Return what new users have, by arm: float64 [users, 13]."""
    fleet = [
        clicked(answers, wish(population, seed, user), CLICKS, (seed, user), shipped) for user in range(USERS)
    ]
    priors = {
        "fleet": fleet_prior(fleet, shipped, ROUNDS, 0.0, seed),
        "epsilon 8": fleet_prior(fleet, shipped, 1, noise_of(8), seed),
        "epsilon 1": fleet_prior(fleet, shipped, 1, noise_of(1), seed),
    }
    shared = priors["fleet"].mean
    far = float(np.mean((answers.score @ shared) ** 2)) / 2
    arms: dict[str, tuple[Prior | None, int]] = {
        "5 clicks": (shipped, 5),
        "20 clicks": (shipped, 20),
        **{
            f"{name}, {clicks} clicks": (prior, clicks)
            for name, prior in priors.items()
            for clicks in (5, 20)
        },
    }
    found = {"one shared vector": np.tile(shared * min(1.0, math.sqrt(FARTHEST / far)), (users, 1))}
    for arm, (prior, clicks) in arms.items():
        found[arm] = np.array(
            [
                clicked(answers, wish(population, seed, user), clicks, (seed, user), prior).vector()
                for user in range(1000, 1000 + users)
            ]
        )
    return found


def slopes(answers: Answers, held: Answers, shipped: Prior) -> list[dict[str, Any]]:
    """Return the gains to first order: a row a population, seed and arm, the mean over new users."""
    rows = []
    for population in ("mixed", "agreed"):
        for seed in SEEDS:
            of_user = np.array(
                [held.slope(wish(population, seed, user)) for user in range(1000, 1000 + USERS)]
            )
            for arm, vectors in vectors_of(answers, shipped, population, seed, USERS).items():
                gain = float((of_user * vectors).sum(1).mean())
                rows.append({"population": population, "seed": seed, "arm": arm, "slope": gain})
    return rows


def answered(
    bundle: Path, answers: Answers, shipped: Prior, units: Array, study: Path, arms: Sequence[str]
) -> None:
    """Add what is missing of the real answers to the study: a row a seed and arm of the mixed population."""
    done = {(row["seed"], row["arm"]) for row in bench.read_study(study) if "gains" in row}
    samples = list(load_general()[:: len(load_general()) // ASKED][:ASKED])
    asked = [prompt for _, *pair in WISHES.values() for prompt in pair]
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as llm:
        basis = learned(load_bundle(bundle).bases)
        before = [[Preamble(text).before(sample) for sample in samples] for text in asked]
        with llm.batch([*samples, *(each for part in before for each in part)], TOKENS) as batch:

            def found(vectors: Sequence[MicroVector | None], of: Sequence[Sample] = samples) -> Array:
                """Wishes of the greedy answers: float64 [vectors, prompts, wishes]."""
                given = batch.answer_each(vectors, of, max_tokens=TOKENS)
                return np.array([[checked(each.text) for each in row] for row in given]) / units

            (base,) = found([None])
            if (0, "a prompt for each") not in done:
                gains = np.array([(found([None], part)[0] - base) for part in before])  # [text, prompt, wish]
                for seed in SEEDS:
                    fleet = [wish("mixed", seed, user) for user in range(USERS)]
                    users = [wish("mixed", seed, user) for user in range(1000, 1000 + ANSWERING)]
                    chosen, judged = gains[:, ::2].mean(1), gains[:, 1::2].mean(1)
                    best = int(np.argmax(chosen @ np.mean(fleet, axis=0)))
                    for arm, picked in (
                        ("one shared prompt", [best] * len(users)),
                        ("a prompt for each", [int(np.argmax(chosen @ each)) for each in users]),
                    ):
                        got = [float(judged[i] @ each) for i, each in zip(picked, users, strict=True)]
                        bench.keep(study, {"seed": seed, "arm": arm, "gains": got})
            for seed in SEEDS:
                vectors = vectors_of(answers, shipped, "mixed", seed, ANSWERING)
                users = [wish("mixed", seed, user) for user in range(1000, 1000 + ANSWERING)]
                for arm in [arm for arm in arms if (seed, arm) not in done]:
                    made = [MicroVector(v.astype(np.float32), basis=basis.digest) for v in vectors[arm]]
                    gained = (found(made) - base).mean(1)
                    got = [float(a @ b) for a, b in zip(gained, users, strict=True)]
                    bench.keep(study, {"seed": seed, "arm": arm, "gains": got})
                    print(f"seed {seed}, {arm}: {statistics.mean(got):+.3f}", flush=True)


def main() -> None:
    """Run what the study lacks, and print a row an arm."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("bundle", type=Path, help="of SmolLM2")
    arguments.add_argument("--answers", type=Path, default=Path("fleet-answers.jsonl"), help="kept there")
    arguments.add_argument("--study", type=Path, default=Path("fleet.jsonl"), help="the record")
    arguments.add_argument("--arms", nargs="*", default=["20 clicks", "fleet, 5 clicks"])
    options = arguments.parse_args()
    if not options.answers.exists():
        asked = load_general("train")
        rows = drawn(
            options.bundle, [asked[i] for i in np.random.default_rng(0).permutation(len(asked))[:80]]
        )
        options.answers.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    rows = bench.read_study(options.answers)
    answers, units = read([row for row in rows if row["prompt"] < CLICKED])
    held, _ = read([row for row in rows if row["prompt"] >= CLICKED], units)
    shipped = learned(load_bundle(options.bundle).bases).prior
    assert shipped is not None
    if not any("slope" in row for row in bench.read_study(options.study)):
        for row in slopes(answers, held, shipped):
            bench.keep(options.study, row)
    answered(options.bundle, answers, shipped, units, options.study, options.arms)
    table: dict[tuple[str, str], list[float]] = {}
    for row in bench.read_study(options.study):
        what = f"slope, {row['population']}" if "slope" in row else "answers"
        value = row["slope"] if "slope" in row else statistics.mean(row["gains"])
        table.setdefault((what, row["arm"]), []).append(value)
    shown = [
        [what, arm, f"{statistics.mean(x):+.3f} +- {statistics.stdev(x) / math.sqrt(len(x)):.3f}"]
        for (what, arm), x in sorted(table.items())
        if len(x) > 1
    ]
    print(bench.table(["measure", "arm", "gain over the base, standard deviations"], shown))


if __name__ == "__main__":
    main()
