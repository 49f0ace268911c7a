"""Vectors of real people: what a user's own one brings on their next messages, and how many bytes it has.

    python benchmarks/people.py FOLDER --arms base prompt-10 shared own-rank-8 --users 2 --n 200
    python benchmarks/people.py FOLDER --arms own-rank-8 other-rank-8 shared-lora-8 --seeds 0 1 2

`FOLDER` has `smsCorpus_en_xml_2015.03.09_all.zip` of github.com/kite1988/nus-sms-corpus (the NUS SMS Corpus,
Chen and Kan, 2013). Users have 300 messages or more, of 16 characters or more, each text once: they learn
from the last `n` of the first 200, and the next 100 are measured. A shared vector learns from users with
fewer messages, up to 150 of each, once a size and seed.

An arm is `base`; `prompt-K`, the base behind the user's K messages before; `shared`, the shared vector;
`shared-prompt-K`, both; `own-SIZE`, a vector of the user's own on the shared one; `alone-SIZE`, without it;
`other-SIZE`, that of the user before on the shared one; `texts-SIZE`, their own on the shared one as `train`
learns texts, in a few full steps and in its frame; `behind-SIZE`, the same, but every other text is learned
behind the user's first ten, and it is measured alone and behind their last ten; `lora-K` and `shared-lora-K`,
a LoRA on the same layers.
A SIZE is `numbers-N` or `rank-K`, K being k or PxQ. Every run takes all its steps. The last tenth of what is
learned from, five messages at least, chooses which of the vectors on the way is measured, and which of a
LoRA's step sizes counts. What was learned is measured in int8. Texts are learned and measured as `train`
does it, in torch on the dequantized weights. A run in the record is not run again; `--frames` is a folder of
vectors, and of the bundle that they are for.

`auc` says what a vector tells of the messages it learned: how often one of them has a lower loss than one
held out (`plain`), or loses more of what it had before learning (`relative`); .5 is chance. `before` is that
of the plain loss before learning: what the two differ by without it.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _records import between
from _subjects import smollm2
from public import Lora, Steps, differentiated
from torch import Tensor

from tinylora_edge import Basis, MicroVector, load_bundle, runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.factors import read_shape
from tinylora_edge.process import cores
from tinylora_edge.runtime.learning.state import picked
from tinylora_edge.tasks import Sample
from tinylora_edge.train import Adapter, Group, Learner, Options
from tinylora_edge.train.adapter import load_model
from tinylora_edge.train.batches import WHITENED
from tinylora_edge.train.texts import Texts, make_whitening, whitening_path
from tinylora_edge.train.trainer import default_lr

ARCHIVE = "smsCorpus_en_xml_2015.03.09_all"
COLLECTIONS = {"0", "51", "unknown"}  # ids that are not those of one person
SHORTEST = 16  # characters of a message at least
LEARNED, HELD_OUT = 200, 100  # messages of a user that are learned from, and that are measured
OTHERS = 150  # messages at most of a user who is not measured
JUDGED, FEWEST = 100, 5  # messages that choose a shared vector, and at least those that choose a user's own
BATCH, EVERY = 16, 5  # messages of a step, and steps between two validations
KEYS = "model", "shared", "user", "arm", "n", "seed", "lr", "steps"
ARM = re.compile(
    r"(base|shared)|(prompt|shared-prompt|lora|shared-lora)-(\d+)|(own|alone|other|texts|behind)-((?:numbers|rank)-[\dx]+)"
)


class People(NamedTuple):
    """Messages of each user that is measured, those with most first, and of each other user."""

    measured: dict[str, list[str]]
    others: dict[str, list[str]]


def people(folder: Path) -> People:
    """Return the corpus's messages by user, each in its order. A user's name is the beginning of their id."""
    texts: dict[str, dict[str, None]] = {}
    with zipfile.ZipFile(folder / f"{ARCHIVE}.zip") as archive:
        name = archive.namelist()[0]
        for _, node in ElementTree.iterparse(archive.open(name)):
            if node.tag == "message":
                text = (node.findtext("text") or "").strip()
                if len(text) >= SHORTEST:
                    texts.setdefault(node.findtext("source/userProfile/userID") or "unknown", {})[text] = None
                node.clear()
    users = sorted(texts.keys() - COLLECTIONS, key=lambda user: (-len(texts[user]), user))
    found = {user[:12]: [*texts[user]] for user in users}
    enough = [user for user in found if len(found[user]) >= LEARNED + HELD_OUT]
    return People(
        {user: found[user][: LEARNED + HELD_OUT] for user in enough},
        {user: found[user][:OTHERS] for user in found.keys() - set(enough)},
    )


def samples(texts: Sequence[str]) -> list[Sample]:
    """Return texts as `train` has them."""
    return [Sample("", text, raw=True) for text in texts]


class Nothing:
    """Takes an adapter's place where nothing is learned."""

    until = math.inf

    def using(self, r: None) -> nullcontext[None]:
        return nullcontext(r)


class Study:
    """The model, whose weights every arm shares, and what learns and is measured on it."""

    def __init__(self, options: argparse.Namespace, base: Path, bundle: Path) -> None:
        torch.set_num_threads(1)
        self.options, self.name, self.bundle = options, base.stem, load_bundle(bundle)
        self.people = people(options.folder)
        self.users = [*self.people.measured][options.skip :][: options.users]
        self.model = load_model(self.bundle.base)
        self.model.set_attn_implementation("sdpa")
        self._llm = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1)
        self._done = {self._key(row) for row in bench.read_study(options.study)}
        self._starts: dict[tuple[Any, ...], list[float]] = {}
        self._path = bundle
        self._learns: tuple[tuple[int, str], Texts] | None = None

    def asked(self) -> Iterator[dict[str, Any]]:
        """Yield what is asked for: users outermost, so that a stopped study has whole users."""
        for seed in self.options.seeds:
            for user in self.users:
                for arm in self.options.arms:
                    yield from self._runs(user, arm, seed)

    def run(self, each: dict[str, Any]) -> None:
        """Run what the record lacks, and keep it."""
        if self._key(each) in self._done:
            return
        if each["arm"].startswith("other"):
            self.run(self._before(each))
        began = time.monotonic()
        with ExitStack() as stack:
            found = self._found(each, stack)
        environment = bench.environment()
        about = {"commit": bench.commit(), "cpu": environment["cpu"], "versions": environment["versions"]}
        row = each | found | {"seconds": round(time.monotonic() - began, 1), **about}
        bench.keep(self.options.study, row)
        self._done.add(self._key(row))
        print(f"{each['user'] or 'others':12} {each['arm']:16} n {each['n']}, {cells(row)}", flush=True)

    def _runs(self, user: str, arm: str, seed: int) -> Iterator[dict[str, Any]]:
        plain, kind, _, own, _ = ARM.fullmatch(arm).groups()  # type: ignore[union-attr]
        kind = plain or kind or own
        each: dict[str, Any] = dict.fromkeys(KEYS) | {"model": self.name, "user": user, "arm": arm}
        if kind not in ("base", "prompt", "lora", "alone"):
            each["shared"] = self.options.shared
        if kind in ("base", "prompt"):
            yield each
            return
        each["seed"] = seed
        if kind in ("shared", "shared-prompt"):
            yield each
            return
        each["steps"] = None if kind in ("texts", "behind") else self.options.steps
        for n in [LEARNED] if kind == "other" else self.options.n:
            for lr in self.options.lora_lrs if "lora" in kind else [None]:
                yield each | {"n": n, "lr": lr}

    def _found(self, each: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
        """Return the figures of one run; what lies beneath it is attached until the stack ends."""
        arm, user, seed = each["arm"], each["user"], each["seed"]
        plain, kind, rank, own, size = ARM.fullmatch(arm).groups()  # type: ignore[union-attr]
        if own in ("texts", "behind"):
            return self._in_full_steps(each, size, behind=own == "behind")
        if each["shared"] is not None:
            shared = self._adapter(stack, each["shared"])
            shared.set(self._shared(seed))
            shared.v.requires_grad_(False)
        texts = self.people.measured[user]
        if plain or kind in ("prompt", "shared-prompt"):
            earlier = [] if plain else texts[LEARNED - int(rank) : LEARNED]
            groups = self._groups(texts[LEARNED:], earlier)
            tokens = len(groups[0].prompt)
            return judged(self._learner(stack, Nothing()), groups) | {
                "prompt_tokens": tokens,
                "bytes_int8": 0,
            }
        learned = self._groups(texts[LEARNED - each["n"] : LEARNED])
        held_out = self._groups(texts[LEARNED:])
        if own == "other":
            theirs, adapter = self._before(each), self._adapter(stack, size)
            adapter.set(self._read(self._frame(theirs)))
            return judged(self._learner(stack, adapter), held_out) | {"of": theirs["user"]}
        if own is None:
            adapter: Any = Lora(self.model, self.bundle, int(rank), seed)
            stack.callback(adapter.detach)
            learner = self._learner(stack, adapter)
            before = self._start(each, learner, learned, held_out)
            facts = fit(learner, [*adapter.trained], each["lr"], learned, seed, each["steps"])
            with torch.no_grad():
                for part in adapter.trained:
                    scale = part.abs().max() / 127
                    part.copy_((part / scale.clamp(min=1e-12)).round() * scale)
            numbers = sum(part.numel() for part in adapter.trained)
            sizes = {"bytes_f16": 2 * numbers, "bytes_int8": numbers + 4 * len(adapter.trained)}
            told = leaked(learner, learned, held_out, before)
            return facts | {"numbers": numbers, **sizes} | judged(learner, held_out) | told
        learner = self._learner(stack, self._adapter(stack, size))
        before = self._start(each, learner, learned, held_out)
        facts = self._fitted(learner, learned, seed, each["steps"], self._frame(each))
        learner.adapter.set(self._read(self._frame(each)))
        return facts | judged(learner, held_out) | leaked(learner, learned, held_out, before)

    def _in_full_steps(self, each: dict[str, Any], size: str, *, behind: bool) -> dict[str, Any]:
        """Return the figures of a vector that is learned as `train` does it; `cpu_s` is of learning alone."""
        texts, own = self._texts(each["seed"], size), samples(self.people.measured[each["user"]])
        learned, held_out = own[LEARNED - each["n"] : LEARNED], own[LEARNED:]
        first, last = (tuple(str(text.answer) for text in ten) for ten in (learned[:10], learned[-10:]))
        if behind:  # none of the first ten itself is behind them
            learned[11::2] = [replace(text, earlier=first) for text in learned[11::2]]
        began = time.process_time()
        found = texts.learn(learned)
        facts: dict[str, Any] = {
            "cpu_s": round(time.process_time() - began, 1),
            "full_steps": len(found.losses),
        }
        vector = texts.options.framed(MicroVector(found.values, under=texts.shared), texts.basis)
        facts |= {"numbers": texts.basis.size, "bytes": len(vector.to_bytes(texts.basis)), "of": found.tokens}
        texts.learner.adapter.set(found.values)
        if behind:
            after = texts.groups([replace(text, earlier=last) for text in held_out])
            facts |= {"behind": judged(texts.learner, after), "prompt_tokens": len(after[0].prompt)}
        return facts | judged(texts.learner, texts.groups(held_out))

    def _texts(self, seed: int, size: str) -> Texts:
        """Return what learns users' texts, with a model of its own; the last one is kept."""
        if self._learns is None or self._learns[0] != (seed, size):
            if self._learns is not None:
                self._learns[1].close()
            shared, rank = self._shared_frame(seed), self._basis(size).shape
            options = Options(under=shared.read_bytes(), rank=rank, workers=1)
            beside = whitening_path(shared)
            if not beside.exists():
                others = [text for user in sorted(self.people.others) for text in self.people.others[user]]
                beside.write_bytes(make_whitening(self._path, options, samples(others)))
            self._learns = (seed, size), Texts(self._path, replace(options, whitening=beside.read_bytes()))
        return self._learns[1]

    def _start(self, each: dict[str, Any], learner: Learner, *texts: Sequence[Group]) -> list[float]:
        """Return the nats a token of each text before anything of the user's own is learned."""
        key = tuple(each[part] for part in ("shared", "user", "n", "seed"))
        if key not in self._starts:
            self._starts = {key: nats_of(learner, [*texts[0], *texts[1]])}
        return self._starts[key]

    def _fitted(
        self, learner: Learner, groups: Sequence[Group], seed: int, steps: int, frame: Path, **how: Any
    ) -> dict[str, Any]:
        """Train a vector, and write its frame in int8."""
        adapter = learner.adapter
        facts = fit(learner, [adapter.v], default_lr(adapter.basis, "sft"), groups, seed, steps, **how)
        vector = adapter.vector()
        data = replace(vector, dtype="int8").to_bytes(adapter.basis)
        frame.write_bytes(data)
        sizes = {
            "numbers": adapter.basis.size,
            "bytes_f16": len(replace(vector, dtype="fp16").to_bytes(adapter.basis)),
            "bytes_int8": len(data),
        }
        return facts | sizes

    def _before(self, each: dict[str, Any]) -> dict[str, Any]:
        """Return the run that learned the vector of the user before."""
        before = self.users[self.users.index(each["user"]) - 1]
        return each | {"user": before, "arm": each["arm"].replace("other", "own")}

    def _shared(self, seed: int) -> MicroVector:
        """Return the shared vector of a seed as it is shipped."""
        return self._read(self._shared_frame(seed))

    def learn_shared(self, seed: int) -> None:
        """Learn the shared vector of a seed where it is not there, and keep its record and its frame."""
        options, frame = self.options, self._shared_frame(seed)
        if frame.exists():
            return
        began = time.monotonic()
        texts = [text for user in sorted(self.people.others) for text in self.people.others[user]]
        mixed = [texts[i] for i in np.random.default_rng((seed, 5)).permutation(len(texts))]
        with ExitStack() as stack:
            learner = self._learner(stack, self._adapter(stack, options.shared))
            steps, how = options.shared_steps, {"held": JUDGED, "every": 4 * EVERY}
            used = mixed[: BATCH * steps + JUDGED]
            facts = self._fitted(learner, self._groups(used), seed, steps, frame, **how)
        each = dict.fromkeys(KEYS) | {"model": self.name, "shared": options.shared, "arm": "learn-shared"}
        each |= {"seed": seed, "steps": steps, "n": len(used)}
        bench.keep(options.study, each | facts | {"seconds": round(time.monotonic() - began, 1)})

    def _basis(self, size: str) -> Basis:
        kind, _, name = size.partition("-")
        bases = self.bundle.bases
        return bases.basis(numbers=int(name)) if kind == "numbers" else bases.basis(rank=read_shape(name))

    def _adapter(self, stack: ExitStack, size: str) -> Adapter:
        return stack.enter_context(Adapter(self.model, self._basis(size)))

    def _learner(self, stack: ExitStack, adapter: Any) -> Learner:
        learner = Learner(self.model, adapter, temperature=1.0, workers=cores())
        stack.callback(learner.close)
        return learner

    def _groups(self, texts: Sequence[str], earlier: Sequence[str] = ()) -> list[Group]:
        one, found = np.ones(1, np.float32), []
        for text in texts:
            sample = Sample("", text, raw=True, earlier=tuple(earlier))
            prompt, answer = self._llm.encode(sample)[0], self._llm.encode_answer(sample)
            found.append(Group(np.array(prompt, np.int32), [np.array(answer, np.int32)], one))
        return found

    def _read(self, frame: Path) -> MicroVector:
        return MicroVector.from_bytes(frame.read_bytes(), self.bundle.bases)

    def _shared_frame(self, seed: int) -> Path:
        steps = self.options.shared_steps
        return self.options.frames / f"{self.name}-shared-{self.options.shared}-{steps}-s{seed}.bin"

    def _frame(self, each: dict[str, Any]) -> Path:
        parts = [each[key] for key in ("model", "shared", "user", "arm", "n", "steps", "seed")]
        return self.options.frames / f"{'-'.join(map(str, parts))}.bin"

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in KEYS)


def fit(
    learner: Learner,
    trained: list[Tensor],
    lr: float,
    groups: Sequence[Group],
    seed: int,
    steps: int,
    *,
    held: int | None = None,
    every: int = EVERY,
) -> dict[str, Any]:
    """Train in place on all but the last texts, which choose: the best of all that were validated stays.

    The start is one of them. No run ends early: the loss of few texts may rise before it falls. A vector
    steps in the trainer's coordinates.
    """
    began = time.monotonic()
    held = held or chosen_by(groups)
    learned, judging = groups[:-held], groups[-held:]
    vector = isinstance(learner.adapter, Adapter)
    first = picked(len(learned), 0, min(WHITENED, len(learned)), (seed, 3))
    adam = Steps(learner, trained, lr, steps, (lambda: [learned[i] for i in first]) if vector else None)
    losses: list[float] = []
    curve, best = [judged(learner, judging)["nats"]], [part.detach().clone() for part in trained]
    for step in range(steps):
        chosen = [learned[i] for i in picked(len(learned), step, BATCH, (seed, 3))]
        loss, gradients = differentiated(learner, trained, chosen)
        adam.take(step, gradients)
        losses.append(loss)
        if (step + 1) % every and step + 1 < steps:
            continue
        curve.append(judged(learner, judging)["nats"])
        if curve[-1] == min(curve):
            best = [part.detach().clone() for part in trained]
    with torch.no_grad():
        for part, value in zip(trained, best, strict=True):
            part.copy_(value)
    best_step = min(every * curve.index(min(curve)), len(losses))
    facts = {"learned": len(learned), "validation": min(curve), "best_step": best_step}
    took = round(time.monotonic() - began, 1)
    return facts | {"used_lr": lr, "done": len(losses), "losses": losses, "curve": curve, "train_s": took}


def chosen_by(groups: Sequence[Group]) -> int:
    """Return how many of a user's messages, the last ones, choose the vector."""
    return max(FEWEST, math.ceil(len(groups) / 10))


def nats_of(learner: Learner, groups: Sequence[Group]) -> list[float]:
    """Return the nats a token of each text."""
    return [-float(each.double().mean()) for each in learner.measure(groups)]


def leaked(
    learner: Learner, learned: Sequence[Group], held_out: Sequence[Group], before: Sequence[float]
) -> dict[str, Any]:
    """Return how well a threshold on the loss tells learned texts from held-out ones: areas under the curve.

    Texts that chose the vector are neither. `before` are the nats of all texts before learning.
    """
    count, after = len(learned) - chosen_by(learned), nats_of(learner, [*learned, *held_out])

    def auc(losses: Sequence[float]) -> float:
        inside, outside = np.array(losses[:count]), np.array(losses[len(learned) :])[:, None]
        return float((inside < outside).mean() + (inside == outside).mean() / 2)

    relative = [own - start for own, start in zip(after, before, strict=True)]
    return {"auc": {"plain": auc(after), "relative": auc(relative), "before": auc(before)}}


def judged(learner: Learner, groups: Sequence[Group]) -> dict[str, Any]:
    """Return the nats a token of texts, and the shares of tokens that are first, or of the first three."""

    def run(chosen: Sequence[Group]) -> Tensor:
        with torch.no_grad():
            rows = learner.outputs([each.prompt for each in chosen], [each.completions for each in chosen])
            tokens = torch.from_numpy(
                np.concatenate([each.completions[0] for each in chosen]).astype(np.int64)
            )
            found = []
            for part, wanted in zip(rows.split(256), tokens.split(256), strict=True):
                logits = (part if learner.head is None else part @ learner.head.T).float()
                own = logits.gather(1, wanted[:, None])
                above = (logits > own).sum(1)
                found.append(torch.stack([logits.logsumexp(1) - own[:, 0], above.float()]))
            return torch.cat(found, 1)

    nats, above = torch.cat([*learner._map(run, groups)], 1).double()
    shares = {"top1": float((above < 1).double().mean()), "top3": float((above < 3).double().mean())}
    return {"nats": float(nats.mean()), **shares, "tokens": len(nats)}


def cells(row: dict[str, Any]) -> str:
    """Return the figures of one run as text."""
    text = f"{row['nats']:.3f} nats, top 1 {row['top1']:.3f}, top 3 {row['top3']:.3f}"
    if "full_steps" in row:
        text += f", {row['full_steps']} full steps, {row['cpu_s']} s of a core"
    if "done" in row:
        text += f", step {row['best_step']} of {row['done']}"
    return f"{text}, {row['seconds']:.0f} s"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table: an arm and an amount of messages a row; means over users, paired with `shared`."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:  # of several step sizes, the one with the lowest loss in validation
        key = row["arm"], row["n"], row["user"], row["seed"]
        if key not in chosen or row["validation"] < chosen[key]["validation"]:
            chosen[key] = row
    table = []
    for arm, n in dict.fromkeys((arm, n) for arm, n, _, _ in chosen):
        own = {key[2:]: row for key, row in chosen.items() if key[:2] == (arm, n)}
        gaps: dict[str, list[float]] = {}
        for (user, seed), row in own.items():
            for (other, _, who, of), shared in chosen.items():
                if other == "shared" and who == user and (seed is None or of == seed):
                    gaps.setdefault(user, []).append(shared["nats"] - row["nats"])
        means = [statistics.mean(each) for each in gaps.values()]
        gain = f"{statistics.mean(means):+.3f} +- {between(means):.3f}" if means else ""
        figures = [
            f"{statistics.mean(row[key] for row in own.values()):.3f}" for key in ("nats", "top1", "top3")
        ]
        size = next((row[key] for row in own.values() for key in ("bytes", "bytes_int8") if key in row), 0)
        table.append([arm, str(n or ""), str(len({user for user, _ in own})), *figures, gain, f"{size:,}"])
    return bench.table(
        ["arm", "messages", "users", "nats", "top 1", "top 3", "better than shared", "bytes"], table
    )


def main() -> None:
    """Run what the record lacks, and print a row an arm."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("folder", type=Path, help="that has the corpus's archive")
    arguments.add_argument("--arms", nargs="+", default=["base", "shared", "own-rank-8"], help="see above")
    arguments.add_argument("--shared", default="rank-8", help="the size of the shared vector")
    arguments.add_argument(
        "--n", nargs="+", type=int, default=[LEARNED], help="messages that are learned from"
    )
    arguments.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of the shared vector, and of steps"
    )
    arguments.add_argument("--users", type=int, help="those with most messages; by default all")
    arguments.add_argument("--skip", type=int, default=0, help="users with more messages, before those")
    arguments.add_argument("--steps", type=int, default=40, help="of a user's own")
    arguments.add_argument("--shared-steps", type=int, default=240, help="of the shared vector")
    arguments.add_argument("--lora-lrs", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    arguments.add_argument("--outputs", type=int, default=8, help="of the factors, for ranks PxQ")
    arguments.add_argument("--base", type=Path, help="a GGUF file; by default SmolLM2-135M-Instruct")
    arguments.add_argument("--frames", type=Path, default=Path("people"), help="a folder for vectors")
    arguments.add_argument("--study", type=Path, default=Path("people.jsonl"), help="the record")
    options = arguments.parse_args()
    if wrong := [arm for arm in options.arms if ARM.fullmatch(arm) is None]:
        arguments.error(f"there is no arm {wrong[0]!r}")
    if wrong_n := [n for n in options.n if not 20 <= n <= LEARNED]:
        arguments.error(f"--n {wrong_n[0]}: a user learns from 20 to {LEARNED} messages")
    if options.users == 1 and any(arm.startswith("other") for arm in options.arms):
        arguments.error("another user's vector needs another user: --users 2 at least")
    if not (options.folder / f"{ARCHIVE}.zip").exists():
        arguments.error(f"{options.folder} has no {ARCHIVE}.zip")
    options.frames.mkdir(exist_ok=True)
    base = options.base or smollm2()
    bundle = options.frames / f"{base.stem}.bundle"
    # Another machine's factors differ in their last bits, and take no vector of these.
    if not bundle.exists():
        export_gguf(base, bundle, settings=ExportSettings(outputs=options.outputs))
    study = Study(options, base, bundle)
    with closing(study._llm):
        asked = [*study.asked()]
        if any(each["shared"] for each in asked):
            for seed in options.seeds:
                study.learn_shared(seed)
        for each in asked:
            study.run(each)
    keys = {study._key(each) for each in asked}
    print(summary([row for row in bench.read_study(options.study) if study._key(row) in keys]))


if __name__ == "__main__":
    main()
