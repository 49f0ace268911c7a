"""How far clicks move a vector: simulated users with known preferences, on the real model.

What a user sees are answers of the base to training prompts, drawn and scored once for all users (the
answers file, which can be kept), so that a session of any length costs one evaluation. Ways to learn from as
many clicks, by the share of held-out prompts that are answered as the user likes:

  clicks  a like or a dislike an answer: what `Clicks.tell` does
  pairs   the better of two answers: what `Clicks.prefer` does
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import _common as bench
import numpy as np
from _subjects import export, learned, tiled

from tinylora_edge import Basis, MicroVector, runtime
from tinylora_edge.projection import Prior
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.learning.posterior import Posterior
from tinylora_edge.tasks import Completion, Sample, Task, load_task

PROMPTS, SAMPLES = 40, 4  # of the answers file
BASES = {"random": tiled, "learned": learned}
STEP = {"random": 0.05, "learned": 0.35}  # of the finite differences there: both move answers above rounding
SLIPS = 0.1  # of the clicks go to the wrong button


@dataclass(frozen=True)
class Preference:
    """What a user likes: a task's prompts, and how much an answer pleases; above 0.5 it is liked."""

    task: str
    pleases: Callable[[Completion, Sample, Task], float]


def brief(completion: Completion, sample: Sample, task: Task) -> float:
    """1 for an answer that ends by itself, falling with its words; under 0.5 above 14 words."""
    words = len(completion.text.split())
    return 1 / (1 + math.exp((words - 14.5) / 4)) if completion.ended else 0.0


PREFERENCES = {
    "correct": Preference("list-lookup", lambda c, s, t: t.score(c, s)),
    "brief": Preference("brevity", brief),
}


def say(generator: np.random.Generator, liked: bool) -> bool:
    """What a user clicks who slips now and then."""
    return liked != (generator.random() < SLIPS)


def load(folder: Path, projection: str) -> tuple[TinyLoraLlama, Basis]:
    bundle, bases = export(folder)
    return runtime.load(bundle, n_ctx=64, n_threads=1, n_threads_batch=1), BASES[projection](bases)


def draw(
    llm: TinyLoraLlama, basis: Basis, task: Task, step: float, threads: int | None
) -> list[dict[str, Any]]:
    """Answers of the base to training prompts, with scores: what `Clicks` learns of a click."""
    samples = task.train[:PROMPTS]
    prompts = [llm.encode(sample)[0] for sample in samples]
    with llm.batch(samples, task.max_tokens, n_threads=threads) as batch:
        drawn = batch.generate(
            prompts, samples=SAMPLES, max_tokens=task.max_tokens, temperature=task.temperature, seed=7
        )
        answers = [[g.tokens.tolist() for g in drawn if g.prompt == i] for i in range(len(prompts))]

        def totals(values: np.ndarray) -> np.ndarray:
            vector = MicroVector(values.astype(np.float32), basis=basis.digest)
            (found,) = batch.score_each([vector], prompts, answers, temperature=task.temperature)
            return np.array([row.sum(dtype=np.float64) for rows in found for row in rows])

        steps = step * np.eye(basis.size)
        scores = np.array([(totals(each) - totals(-each)) / (2 * step) for each in steps]).T
    return [
        {
            "task": task.name,
            "prompt": g.prompt,
            "text": llm.chat_tokenizer.decode(g.tokens),
            "ended": g.ended,
            "tokens": len(g.tokens),
            "score": [round(float(x), 3) for x in score],
        }
        for g, score in zip(drawn, scores, strict=True)
    ]


def pleasing(answers: Sequence[dict[str, Any]], preference: Preference, task: Task) -> np.ndarray:
    return np.array(
        [
            preference.pleases(Completion(a["text"], a["ended"], a["tokens"]), task.train[a["prompt"]], task)
            for a in answers
        ]
    )


def from_clicks(
    answers: Sequence[dict[str, Any]], pleases: np.ndarray, clicks: int, seed: int, prior: Prior | None
) -> np.ndarray:
    """The vector after a like or a dislike of so many answers."""
    generator = np.random.default_rng((seed, 1))
    posterior = Posterior(len(answers[0]["score"]), prior=prior)
    for index in generator.permutation(len(answers))[:clicks]:
        score = np.array(answers[index]["score"])
        liked = say(generator, bool(pleases[index] > 0.5))
        posterior.like(score, 0.0, np.zeros(posterior.n), 1 if liked else -1)
    return posterior.vector()


def from_pairs(
    answers: Sequence[dict[str, Any]], pleases: np.ndarray, clicks: int, seed: int, prior: Prior | None
) -> np.ndarray:
    """The vector after so many comparisons of two answers; a user who sees no difference presses neither."""
    generator = np.random.default_rng((seed, 2))
    posterior = Posterior(len(answers[0]["score"]), prior=prior)
    places: dict[int, list[int]] = {}
    for index, answer in enumerate(answers):
        places.setdefault(answer["prompt"], []).append(index)
    pairs = [pair for group in places.values() for pair in combinations(group, 2)]
    pairs = [pair for pair in pairs if pleases[pair[0]] != pleases[pair[1]]]
    for place in generator.permutation(len(pairs))[:clicks]:
        a, b = pairs[place]
        better, worse = (a, b) if say(generator, bool(pleases[a] > pleases[b])) else (b, a)
        scores = [np.array(answers[i]["score"]) for i in (better, worse)]
        posterior.prefer(scores[0], scores[1], (0.0, 0.0), np.zeros(posterior.n))
    return posterior.vector()


def liked(
    batch: Batch, preference: Preference, task: Task, vector: MicroVector, samples: Sequence[Sample]
) -> list[bool]:
    """Which of the greedy answers to held-out prompts the user likes."""
    (answers,) = batch.answer_each([vector], samples, max_tokens=task.max_tokens)
    return [preference.pleases(a, s, task) > 0.5 for a, s in zip(answers, samples, strict=True)]


def sessions(
    llm: TinyLoraLlama,
    basis: Basis,
    options: argparse.Namespace,
    answers: list[dict[str, Any]],
    done: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Every session that is not done yet."""
    kept = {(d["preference"], d["method"], d["clicks"], d["user"]) for d in done}
    prior = None if options.no_prior else basis.projection.prior
    for name in options.preferences:
        preference = PREFERENCES[name]
        task = load_task(preference.task)
        samples = task.held_out[: options.prompts]
        mine = [answer for answer in answers if answer["task"] == preference.task]
        pleases = pleasing(mine, preference, task) if mine else np.zeros(0)
        with llm.batch([*samples, *task.train], task.max_tokens, n_threads=options.threads) as batch:
            plan = [(m, c, u) for m in options.methods for c in options.clicks for u in options.users]
            for method, clicks, user in [("base", 0, 0), *plan]:
                if (name, method, clicks, user) in kept:
                    continue
                if method == "base":
                    values = np.zeros(basis.size)
                elif method == "clicks":
                    values = from_clicks(mine, pleases, clicks, user, prior)
                else:
                    values = from_pairs(mine, pleases, clicks, user, prior)
                vector = MicroVector(values.astype(np.float32), basis=basis.digest)
                found = liked(batch, preference, task, vector, samples)
                yield {
                    "preference": name,
                    "method": method,
                    "clicks": clicks,
                    "user": user,
                    "n": len(found),
                    "liked": statistics.mean(found),
                    "norm": float(np.linalg.norm(values)),
                    "vector": [round(float(x), 5) for x in values],
                }


def same(row: dict[str, Any], arm: dict[str, Any]) -> bool:
    """Whether a session was held in this basis; before there were others, all were in random ones."""
    return {"projection": row.get("projection", "random"), "prior": row.get("prior", True)} == arm


def summary(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean gain over users, and its standard error from the spread between them."""
    base = {d["preference"]: d["liked"] for d in done if d["method"] == "base"}
    groups: dict[tuple[str, str, int], list[float]] = {}
    for d in done:
        if d["method"] != "base":
            key = d["preference"], d["method"], d["clicks"]
            groups.setdefault(key, []).append(d["liked"] - base[d["preference"]])
    return [
        {
            "preference": name,
            "method": method,
            "clicks": clicks,
            "users": len(gains),
            "base": base[name],
            "gain": statistics.mean(gains),
            "standard_error": statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
            "gains": gains,
        }
        for (name, method, clicks), gains in sorted(groups.items())
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("--json", metavar="FILE", help="write the record there; - for stdout")
    arguments.add_argument("--study", type=Path, metavar="FILE", help="sessions, kept and gone on with")
    arguments.add_argument("--answers", type=Path, metavar="FILE", help="answers and scores, kept likewise")
    arguments.add_argument("--projection", choices=BASES, default="random", help="(%(default)s)")
    arguments.add_argument("--no-prior", action="store_true", help="leave a learned basis's prior out")
    arguments.add_argument("--preferences", nargs="+", choices=PREFERENCES, default=list(PREFERENCES))
    arguments.add_argument("--methods", nargs="+", choices=["clicks", "pairs"], default=["clicks", "pairs"])
    arguments.add_argument("--clicks", type=int, nargs="+", default=[10, 20, 40, 80], metavar="N")
    arguments.add_argument("--users", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED")
    arguments.add_argument("--prompts", type=int, default=64, help="held out (%(default)s)")
    arguments.add_argument("--threads", type=int, help="all cores unless given")
    options = arguments.parse_args()
    report = bench.Report("feedback", options.json)
    with tempfile.TemporaryDirectory() as folder:
        llm, basis = load(Path(folder), options.projection)
        answers = [
            a
            for a in bench.read_study(options.answers)
            if a.get("projection", "random") == options.projection
        ]
        arm = {"projection": options.projection, "prior": not options.no_prior}
        done = [row for row in bench.read_study(options.study) if same(row, arm)]
        if options.methods:
            for name in {PREFERENCES[p].task for p in options.preferences} - {a["task"] for a in answers}:
                drawn = draw(llm, basis, load_task(name), STEP[options.projection], options.threads)
                drawn = [row | {"projection": options.projection} for row in drawn]
                answers += drawn
                for row in drawn if options.answers else ():
                    bench.keep(options.answers, row)
        for found in sessions(llm, basis, options, answers, done):
            session = found | arm
            done.append(session)
            if options.study:
                bench.keep(options.study, session)
            name = ", ".join(str(session[key]) for key in ("preference", "method", "clicks", "user"))
            report.say(f"{name}: {session['liked']:.3f}")
    means = summary(done)
    rows = [
        [
            f"{f['preference']}, {f['method']}",
            str(f["clicks"]),
            f"{f['base']:.3f}",
            f"{f['gain']:+.3f}"
            + (f" +- {f['standard_error']:.3f}" if f["standard_error"] is not None else ""),
            " ".join(f"{gain:+.3f}" for gain in f["gains"]),
        ]
        for f in means
    ]
    headers = ["preference, method", "clicks", "base", "gain over users", "gain of each"]
    report.say("\n" + bench.table(headers, rows))
    report.record |= {"sessions": done, "summary": means}
    report.finish()


if __name__ == "__main__":
    main()
