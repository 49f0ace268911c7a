"""Vectors and a LoRA on public data: cross-entropy on given answers, the same loop for each arm.

    python benchmarks/public.py snips FOLDER --arms rank-8 lora-8 --seeds 0 1 2 --study public.jsonl
    python benchmarks/public.py clinc FOLDER --arms rank-8

`FOLDER` is what `_sets.py` says. An arm is `rank-K` or `rank-PxQ`, all entries of R, with
`-q2` or `-q4` in so many bits, in which the last third of its steps is taken; `plain-K`, without
whitened steps; `keep-K`, with `--keep`; `learned-13`, the shipped directions; `lora-K`, a LoRA on the same
layers, with `-q1` to `-q4` rounded likewise, in blocks of 32 numbers with a scale each; `base`; `functions`,
the base behind their names and arguments (snips); `shots`, the best of nine prompts of worked examples; the
file of a vector, `*.bin`; `tf-idf` and `tf-idf-N`, a classifier, which needs scikit-learn; or one of
`SERVICES`.

Every arm sees the same samples in the same order, and its last vector is measured: nothing is chosen by what
is measured on. Vectors answer in llama.cpp on the quantized weights; the LoRA answers in torch on the same
weights, dequantized. Nats a token of the given answers are measured in torch for all, and so is `moved`: how
many nats a token likelier the base's own answers to general prompts were before. `--held` holds answers
to a schema of the training data's calls. A run that is in the record is not run again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _sets import PublicSet, clinc, ifeval, others, snips, tf_idf
from _subjects import learned, smollm2
from torch import Tensor, nn

from tinylora_edge import MicroVector, Policy, load_bundle, runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.factors import read_shape
from tinylora_edge.process import cores
from tinylora_edge.projection import Whitening
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.learning.state import picked
from tinylora_edge.tasks import Preamble, Sample, Task, draw_examples
from tinylora_edge.tasks.load import load_general
from tinylora_edge.train import Adapter, Group, Learner
from tinylora_edge.train.adapter import give_back, hf_names, load_model
from tinylora_edge.train.batches import KEEP, REHEARSED_TOKENS, WHITENED, Rehearsal
from tinylora_edge.train.learner import rounded, whitened
from tinylora_edge.train.trainer import ROUNDED, fitted_lr

GENERAL, ANSWERED = 32, 48  # general prompts, and most tokens of an answer to one
LORA_LR = 0.002  # a LoRA's step size where none is given
BLOCK = 32  # numbers of a LoRA that share a scale of 16 bits, as in GGUF's Q4_0
SHOTS, CHOSEN = (2, 4, 8), 14  # examples in a prompt, and training samples that choose among prompts
SERVICES = tuple(f"{name}_metrics" for name in ("Snips", "api.ai", "Wit", "Luis", "Alexa"))
SERVICES += ("Snips_metrics_full",)  # SNIPS's repository has their figures; the last learned 2,000 an intent
FUNCTIONS_PROMPT = """Answer with the one call that does what the user says, as JSON:
{{"name": <function>, "arguments": {{<argument>: <words of the user>, ...}}}}
Leave out the arguments that the user does not mention. The functions:
{}"""
KEYS = "set", "model", "each", "arm", "seed", "steps", "asked_lr", "n", "held"


class Lora(nn.Module):
    """PEFT's LoRA on the layers of a basis: A uniform, B zero, scale 1, in float32."""

    until = math.inf  # learners set it, as they set an adapter's

    def __init__(self, model: Any, bundle: Any, rank: int, seed: int) -> None:
        super().__init__()
        model.requires_grad_(False)
        random = torch.Generator().manual_seed(seed)
        self.trained, self._handles = nn.ParameterList(), []
        for name in hf_names(model, bundle.factors).values():
            layer = model.get_submodule(name)
            a = torch.empty(rank, layer.in_features)
            nn.init.kaiming_uniform_(a, a=5**0.5, generator=random)
            self.trained += [nn.Parameter(a), nn.Parameter(torch.zeros(layer.out_features, rank))]
            self._handles.append(layer.register_forward_hook(self._hook(*self.trained[-2:])))

    def _hook(self, a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            return output + (x @ a.to(x.dtype).T) @ b.to(x.dtype).T

        return add

    def using(self, r: None) -> nullcontext[None]:
        """Every prompt has this LoRA: there is no R to give to some."""
        return nullcontext(r)

    def detach(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()


class Steps:
    """Steps of Adam as the trainer takes them: in its coordinates, of a size that falls to a tenth.

    Args:
        trained: what learns; the adapter's v where there is a `whitener`.
        lr: step size; None for the trainer's, of a vector, which `fit` finds.
        count: steps in all.
        whitener: makes the completions that the coordinates are found by; None for plain steps.
        dtype: `q2` or `q4`, to which what learns is rounded in the last third of the steps (`q1` too without
            `whitener`); by default not at all.
    """

    def __init__(
        self,
        learner: Learner,
        trained: list[Tensor],
        lr: float | None,
        count: int,
        whitener: Callable[[], Sequence[Group]] | None,
        dtype: str = "",
    ) -> None:
        self._learner, self.lr, self._count, self._dtype = learner, lr or 0.0, count, dtype
        self._coordinates = None if whitener is None else whitened(learner, whitener)
        self._trained, self._z = trained, trained
        if whitener is not None:
            self._z = [torch.zeros_like(part) for part in trained]
        elif dtype:  # gradients are of the rounded numbers, steps go to the exact ones
            self._z = [part.detach().clone() for part in trained]
        self._adam = torch.optim.Adam(self._z, lr=self.lr, betas=(0.9, 0.99))

    def fit(self, groups: Sequence[Group], gradient: Tensor) -> None:
        """Find the step size as the trainer does, by the groups of the first step and its gradient by v."""
        coordinates = self._coordinates or Whitening()
        self.lr = fitted_lr(self._learner, coordinates, groups, coordinates.gradient(gradient.numpy()))

    def take(self, number: int, gradients: list[Tensor]) -> None:
        """Take a step, counted from 0, by gradients of what learns."""
        coordinates = self._coordinates
        if coordinates is not None:
            gradients = [torch.from_numpy(np.float32(coordinates.gradient(gradients[0].numpy())))]
        for part, gradient in zip(self._z, gradients, strict=True):
            part.grad = gradient
        self._adam.param_groups[0]["lr"] = self.lr * (1 - 0.9 * number / max(self._count - 1, 1))
        self._adam.step()
        rounds = bool(self._dtype) and number + 1 >= ROUNDED * self._count
        if coordinates is None:
            if self._dtype:
                for part, exact in zip(self._trained, self._z, strict=True):
                    part.data.copy_(in_blocks(exact, int(self._dtype[1:])) if rounds else exact)
        else:
            v = np.float32(coordinates.values(self._z[0].detach().numpy()))
            if rounds:
                v = rounded(coordinates, v, self._dtype, self._learner.adapter.basis)
            self._learner.adapter.set(v)


def in_blocks(exact: Tensor, bits: int) -> Tensor:
    """Round each 32 numbers to so many bits, in the middles of steps, by the scale that loses least."""
    x, half = exact.detach().reshape(-1, BLOCK), 2 ** (bits - 1)
    scales = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / (half - 0.5) * torch.linspace(0.25, 1, 16)
    codes = (x[..., None] / scales[:, None]).floor().clamp(-half, half - 1) + 0.5
    tried = codes * scales[:, None]
    best = ((tried - x[..., None]) ** 2).sum(1).argmin(1)
    return tried[torch.arange(len(x)), :, best].reshape(exact.shape)


class Run:
    """The model that learns, the deployed one that answers, and a public set."""

    def __init__(self, bundle: Path, data: PublicSet, *, trained: bool, held: bool) -> None:
        torch.set_num_threads(1)
        self.bundle, self.data = load_bundle(bundle), data
        self.schema = data.schema if held else None
        self.llm = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1)
        if trained:
            self.model = load_model(self.bundle.base)
            self.model.set_attn_implementation("sdpa")
        lengths = [len(self.llm.encode_answer(sample)) for sample in (*data.test, *data.train)]
        self.longest = data.max_tokens or max(lengths) + 8

    def measured(
        self, arm: str, seed: int, steps: int, lr: float | None, frames: Path | None, *, answered: bool = True
    ) -> dict[str, Any]:
        """Train one arm, and return its losses and what it scores on the set."""
        began = time.monotonic()
        if arm in ("base", "shots", "functions") or arm.endswith(".bin"):
            prompted = {"shots": lambda: self._shots(seed), "functions": self._functions}
            found = prompted.get(arm, lambda: self._given(None if arm == "base" else Path(arm)))()
            return {**found, "answer_s": time.monotonic() - began}
        kind, size, dtype = [*arm.split("-"), ""][:3]
        basis = None
        if kind == "lora":
            adapter: Any = Lora(self.model, self.bundle, int(size), seed)
            trained, lr = list(adapter.trained), lr or LORA_LR
        else:
            bases = self.bundle.bases
            basis = learned(bases) if kind == "learned" else bases.basis(rank=read_shape(size))
            adapter = Adapter(self.model, basis)
            trained = [adapter.v]
        learner = Learner(self.model, adapter, temperature=1.0, workers=cores())
        general = self._general()
        likely = mean(learner.measure(general))
        kept = self._rehearsal(learner) if kind == "keep" else None
        plain = basis is None or kind == "plain"
        fitted = {"fitted": True} if lr is None else {}
        lr, losses = self._fit(learner, trained, lr, seed, steps, kept, dtype, plain=plain)
        took = time.monotonic() - began
        numbers = sum(part.numel() for part in trained)
        facts: dict[str, Any] = {**fitted, "lr": lr, "numbers": numbers, "losses": losses, "train_s": took}
        if kept is not None:
            facts["keep"] = KEEP
        facts["nats"] = -mean(learner.measure([self._group(sample) for sample in self.data.test]))
        facts["moved"] = likely - mean(learner.measure(general))
        answers: list[str] = []
        if basis is None:
            facts["bytes"] = numbers * (int(dtype[1:]) * BLOCK + 16) // (8 * BLOCK) if dtype else 4 * numbers
            answers = self._torch_answers() if answered else []
        else:
            vector = replace(adapter.vector(), dtype=dtype or "int8", entries=basis.entries)
            data = vector.to_bytes(basis)
            facts["bytes"] = len(data)
            if frames is not None:
                name = f"{self.bundle.base.parent.name}-{self.data.name}-{arm}-{steps}-s{seed}.bin"
                (frames / name).write_bytes(data)
            answers = self.answers(vector) if answered else []
        learner.close()
        adapter.detach()
        figures = self.data.figures(answers) if answered else {}
        return facts | figures | {"answer_s": time.monotonic() - began - took}

    def _given(self, frame: Path | None) -> dict[str, Any]:
        """Return the figures of a vector that is there already, or of the base."""
        vector = None if frame is None else Policy().check(frame.read_bytes(), self.llm.bases)
        size = {"numbers": 0, "bytes": 0}
        if vector is not None and frame is not None:
            size = {"numbers": len(vector.values), "bytes": frame.stat().st_size}
        return size | self.data.figures(self.answers(vector))

    def _shots(self, seed: int) -> dict[str, Any]:
        """Return the figures of the best of nine prompts of examples, chosen on few training samples."""
        task = Task(self.data.name, self.data.train, self.data.test, lambda completion, sample: 0.0)
        tried = []
        for count in SHOTS:
            for draw in range(3):
                before = Preamble(None, draw_examples(task, count, seed=3 * seed + draw))
                examples = {example.text for example in before.examples}
                questions = [sample for sample in self.data.train if sample.text not in examples]
                questions = questions[:: len(questions) // CHOSEN][:CHOSEN]
                answers = self.answers(None, [before.before(sample) for sample in questions])
                found = replace(self.data, test=questions).figures(answers)
                tried.append((found["score"], found.get("slot_f1", 0.0), count, draw, before))
                print(f"{count} shots, draw {draw}: {found['score']:.3f}", flush=True)
        *_, count, draw, before = max(tried, key=lambda row: row[:2])
        return {"shots": count, "draw": draw, **self._behind(before)}

    def _functions(self) -> dict[str, Any]:
        """Return the figures of the base behind the functions and their arguments."""
        known = [f"{name}({', '.join(keys)})" for name, keys in self.data.functions.items()]
        return self._behind(Preamble(FUNCTIONS_PROMPT.format("\n".join(known)), ()))

    def _behind(self, before: Preamble) -> dict[str, Any]:
        """Return the figures of the base behind a prompt."""
        questions = [before.before(sample) for sample in self.data.test]
        tokens = len(self.llm.encode(questions[0])[0]) - len(self.llm.encode(self.data.test[0])[0])
        facts = {"numbers": 0, "bytes": 0, "prompt_tokens": tokens}
        return facts | self.data.figures(self.answers(None, questions))

    def answers(self, vector: MicroVector | None, samples: Sequence[Sample] | None = None) -> list[str]:
        """Return greedy answers of the deployed model."""
        chosen = list(self.data.test if samples is None else samples)
        arguments: dict[str, Any] = {"max_tokens": self.longest, "schema": self.schema}
        with self.llm.batch(chosen, self.longest, sequences=32, n_threads=cores()) as batch:
            return [each.text for each in batch.answer_each([vector], chosen, **arguments)[0]]

    def _rehearsal(self, learner: Learner) -> Rehearsal:
        prompts = [np.array(self.llm.encode(sample)[0], np.int32) for sample in load_general("train")]
        room = max(map(len, prompts)) + REHEARSED_TOKENS
        return Rehearsal(learner, Batch(self.llm, n_ctx_seq=room, sequences=32, n_threads=cores()), prompts)

    def _fit(
        self,
        learner: Learner,
        trained: list[Tensor],
        lr: float | None,
        seed: int,
        steps: int,
        kept: Rehearsal | None,
        dtype: str,
        *,
        plain: bool,
    ) -> tuple[float, list[float]]:
        """Train in place, and return the step size and the losses.

        Steps are in the trainer's coordinates, and as long, unless plain.
        """
        losses, samples = list[float](), self.data.train
        count = len(samples)
        first = picked(count, 0, min(WHITENED, count), (seed, 3))
        whitener = None if plain else lambda: [self._group(samples[i]) for i in first]
        adam = Steps(learner, trained, lr, steps, whitener, dtype)
        for step in range(steps):
            groups = [self._group(samples[i]) for i in picked(count, step, self.data.batch, (seed, 3))]
            loss, gradients = differentiated(learner, trained, groups)
            if kept is not None:
                pull = kept.gradient(step)
                gradients[0] = gradients[0] + KEEP * pull.grad
            if not adam.lr:
                adam.fit(groups, gradients[0])
            adam.take(step, gradients)
            losses.append(loss)
            if step % 10 == 9:
                print(f"step {step + 1}: loss {np.mean(losses[-10:]):.3f}", flush=True)
        return adam.lr, losses

    def _general(self) -> list[Group]:
        """Return the base's greedy answers to general prompts."""
        samples = load_general()[:GENERAL]
        with self.llm.batch(samples, ANSWERED, sequences=32, n_threads=cores()) as batch:
            prompts = batch.encode(samples)
            drawn = {each.prompt: each.tokens for each in batch.generate(prompts, max_tokens=ANSWERED)}
        one = np.ones(1, np.float32)
        return [Group(np.array(prompts[i], np.int32), [drawn[i]], one) for i in sorted(drawn)]

    def _torch_answers(self) -> list[str]:
        """Return greedy answers in torch, as the LoRA is not in the deployed model."""
        prompts = [self.llm.encode(sample)[0] for sample in self.data.test]
        order = sorted(range(len(prompts)), key=lambda i: len(self.llm.encode_answer(self.data.test[i])))
        parts = [order[i : i + 32] for i in range(0, len(order), 32)]
        end, found = self.llm.encode_answer(self.data.test[0])[-1], [""] * len(prompts)

        def answer(part: list[int]) -> None:
            torch.set_num_threads(1)
            longest = max(len(prompts[i]) for i in part)
            ids = torch.tensor([[end] * (longest - len(prompts[i])) + prompts[i] for i in part])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
            with torch.no_grad():
                out = self.model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=self.longest,
                    do_sample=False,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            for i, row in zip(part, out[:, longest:].tolist(), strict=True):
                found[i] = self.llm.chat_tokenizer.decode(row[: row.index(end)] if end in row else row)

        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(answer, parts))
        return found

    def _group(self, sample: Sample) -> Group:
        prompt = np.array(self.llm.encode(sample)[0], np.int32)
        return Group(prompt, [np.array(self.llm.encode_answer(sample), np.int32)], np.ones(1, np.float32))


def mean(scores: Sequence[Tensor]) -> float:
    """Return the mean log-probability of all tokens."""
    return float(torch.cat(list(scores)).mean())


def differentiated(
    learner: Learner, trained: list[Tensor], groups: Sequence[Group]
) -> tuple[float, list[Tensor]]:
    """Return the loss of given answers, nats a token, and its gradients: as the learner's, of any tensors."""
    tokens = sum(len(group.completions[0]) for group in groups)

    def run(chosen: Sequence[Group]) -> tuple[float, Sequence[Tensor]]:
        loss = -torch.stack([each.sum() for each in learner.logprobs(chosen)]).sum() / tokens
        return float(loss.detach()), torch.autograd.grad(loss, trained)

    losses, gradients = zip(*learner._map(run, groups), strict=True)
    give_back()
    return sum(losses), [torch.stack(each).sum(0) for each in zip(*gradients, strict=True)]


def classified(data: PublicSet, arm: str) -> dict[str, Any]:
    """Return the figures of `tf-idf`, or of `tf-idf-N`, which is trained on N samples."""
    labels, size = tf_idf(data, int(arm.removeprefix("tf-idf-")) if arm != "tf-idf" else None)
    return {"numbers": size // 4, "bytes": size, **data.figures(labels)}


def data_of(options: argparse.Namespace, seed: int) -> PublicSet:
    if options.set == "snips":
        return snips(options.folder, options.each, seed).thinned(options.n)
    return {"clinc": clinc, "ifeval": ifeval}[options.set](options.folder).thinned(options.n)


def main() -> None:
    """Run what the record lacks, and print a row a run."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("set", choices=["snips", "clinc", "ifeval"])
    arguments.add_argument("folder", type=Path, help="of the set's data")
    arguments.add_argument("--arms", nargs="+", default=["rank-8", "lora-8"], help="see above")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument(
        "--each", type=int, default=70, help="utterances an intent (snips); 2000: all of them"
    )
    arguments.add_argument("--nats", action="store_true", help="measure the loss alone, without answers")
    arguments.add_argument("--held", action="store_true", help="hold answers to the set's schema (snips)")
    arguments.add_argument("--n", type=int, help="test samples, evenly chosen; by default all")
    arguments.add_argument("--steps", type=int, help="by default those of the set")
    arguments.add_argument("--lr", type=float, help="of every arm; by default each has its own")
    arguments.add_argument("--base", type=Path, help="a GGUF file; by default SmolLM2-135M-Instruct")
    arguments.add_argument("--frames", type=Path, help="a folder that frames are kept in")
    arguments.add_argument("--study", type=Path, default=Path("public.jsonl"), help="the record")
    options = arguments.parse_args()
    if options.held and (options.set != "snips" or any(arm.startswith("lora") for arm in options.arms)):
        arguments.error("--held: SNIPS alone has a schema, and the LoRA's answers in torch keep to none")
    base = options.base or smollm2()
    files, keys = {Path(arm).name: arm for arm in options.arms}, []
    for seed in options.seeds:
        for arm in options.arms:
            data = data_of(options, seed)
            steps = options.steps or data.steps
            name = Path(arm).name  # an arm may be a file
            values = options.set, base.stem, options.each, name, seed, steps, options.lr, len(data.test)
            values += (options.held or None,)  # None for False: records of older versions lack the key
            keys.append(dict(zip(KEYS, values, strict=True)))
    done = [{key: row.get(key) for key in KEYS} for row in bench.read_study(options.study)]
    if left := [each for each in keys if each not in done]:
        with tempfile.TemporaryDirectory() as work:
            shapes = [arm.split("-")[1] for arm in options.arms if arm[:5] in ("rank-", "keep-")]
            outputs, inputs = np.max([(8, 8), *map(read_shape, shapes)], 0).tolist()
            settings = ExportSettings(rank=inputs, outputs=outputs)
            bundle = export_gguf(base, Path(work) / base.stem, settings=settings).output
            for each in left:
                data = data_of(options, each["seed"])
                arm = files[each["arm"]]
                if arm in SERVICES:
                    found = {"slot_f1": statistics.mean(others(options.folder, arm, "70").values())}
                elif arm.startswith("tf-idf"):
                    found = classified(data, arm)
                else:
                    learns = arm.split("-")[0] in ("rank", "plain", "keep", "learned", "lora")
                    run = Run(bundle, data, trained=learns, held=options.held)
                    with closing(run.llm):
                        found = run.measured(
                            arm,
                            each["seed"],
                            each["steps"],
                            options.lr,
                            options.frames,
                            answered=not options.nats,
                        )
                about: dict[str, Any] = {"samples": len(data.train), "batch": data.batch}
                environment = bench.environment()
                about |= {
                    "commit": bench.commit(),
                    "versions": environment["versions"],
                    "cpu": environment["cpu"],
                }
                bench.keep(options.study, each | about | found)
    rows = [row for row in bench.read_study(options.study) if {key: row.get(key) for key in KEYS} in keys]
    names = [
        "arm",
        "seed",
        "numbers",
        "bytes",
        "last loss",
        "score",
        "slot F1 or in scope",
        "train s",
        "answer s",
    ]
    print(bench.table(names, [cells(row) for row in rows]))


def cells(row: dict[str, Any]) -> list[str]:
    """Return a run as a row of the table; a loss is the mean of the last ten steps."""
    loss = f"{np.mean(row['losses'][-10:]):.3f}" if "losses" in row else ""
    second = row.get("slot_f1", row.get("in_scope", 0.0))
    first = [row["arm"], str(row["seed"]), f"{row.get('numbers', 0):,}", f"{row.get('bytes', 0):,}", loss]
    times = [f"{row[key]:.0f}" if key in row else "" for key in ("train_s", "answer_s")]
    return [*first, f"{row.get('score', 0):.3f}", f"{second:.3f}", *times]


if __name__ == "__main__":
    main()
