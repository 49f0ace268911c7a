"""Entries of R of several ranks beside a LoRA on the same layers: SFT on SNIPS calls, the same steps.

SNIPS custom intents (Coucke et al., 2018; CC0): an utterance becomes a call of one of seven functions with
its arguments, as JSON. FOLDER is `2017-06-custom-intent-engines` of github.com/sonos/nlu-benchmark. A system
prompt names the functions and their arguments. Every arm sees the same prompts in the same order; steps are
16 answers of cross-entropy with Adam.

    python benchmarks/ranks.py FOLDER --arms rank-2 rank-8 lora-8 --seeds 0 1 2 --study ranks.jsonl

The reward of a call is 0 unless the function is right, else .25 + .75 of the F1 of its arguments. A run that
is in the record is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import numpy as np
import torch
from _subjects import export
from torch import Tensor, nn

from tinylora_edge import load_bundle, runtime
from tinylora_edge.system import cores
from tinylora_edge.tasks import Sample
from tinylora_edge.train import Adapter, Group, Learner
from tinylora_edge.train.model import hf_names, load_model
from tinylora_edge.train.trainer import default_lr

FUNCTIONS = (
    *("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook"),
    *("SearchCreativeWork", "SearchScreeningEvent"),
)
LORA_LRS = {"lora-8": 2e-3}
BATCH, VALIDATION, LONGEST = 16, 64, 88


def calls(folder: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return utterances and their calls; `kind` is `train` or `validate`."""
    found: dict[str, dict[str, Any]] = {}
    for function in FUNCTIONS:
        text = (folder / function / f"{kind}_{function}.json").read_bytes().decode("utf-8")
        for row in json.loads(text)[function]:
            arguments: dict[str, str] = {}
            for part in row["data"]:
                if "entity" in part:
                    arguments.setdefault(part["entity"], part["text"].strip())
            utterance = "".join(part["text"] for part in row["data"]).strip()
            found.setdefault(utterance, {"function": function, "arguments": arguments})
    return list(found.items())


def samples(folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Return training samples, and those of validation in a fixed random order."""
    train, test = calls(folder, "train"), calls(folder, "validate")
    names: dict[str, set[str]] = {function: set() for function in FUNCTIONS}
    for _, call in train:
        names[call["function"]] |= set(call["arguments"])
    listed = "\n".join(f"{function}({', '.join(sorted(names[function]))})" for function in FUNCTIONS)
    told = f'Answer with one call as JSON: {{"function": ..., "arguments": {{...}}}}. Functions:\n{listed}'

    def sample(utterance: str, call: dict[str, Any]) -> Sample:
        messages = [{"role": "system", "content": told}, {"role": "user", "content": utterance}]
        return Sample(messages, json.dumps(call, ensure_ascii=False))

    order = np.random.default_rng(0).permutation(len(test))
    return [sample(*row) for row in train], [sample(*test[i]) for i in order]


def reward(text: str, answer: str) -> float:
    """Return what a call is worth: 0 to 1."""
    try:
        got, want = json.loads(text), json.loads(answer)
        if got["function"] != want["function"]:
            return 0.0
        a = {(key, str(value).strip().lower()) for key, value in got["arguments"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return 0.0
    b = {(key, value.lower()) for key, value in want["arguments"].items()}
    return 0.25 + 0.75 * (2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)


class Lora(nn.Module):
    """PEFT's LoRA on the layers of a basis: A uniform, B zero, scale 1, in float32."""

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

    def detach(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()


class Run:
    """The model that learns, the deployed one that says what tokens are, and the rows of the task."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        torch.set_num_threads(1)
        self.bundle = load_bundle(bundle)
        self._llm = runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1)
        self._model = load_model(self.bundle.base)
        self._model.set_attn_implementation("eager")
        self.train, test = samples(folder)
        self.validation = test[:VALIDATION]

    def measured(self, arm: str, seed: int, steps: int, lr: float | None) -> dict[str, Any]:
        """Train one arm, and return its losses, its validation, and its numbers."""
        kind, rank = arm.split("-")
        began = time.monotonic()
        if kind == "lora":
            adapter: Any = Lora(self._model, self.bundle, int(rank), seed)
            trained, lr = list(adapter.trained), lr or LORA_LRS[arm]
        else:
            basis = self.bundle.basis(rank=int(rank))
            adapter = Adapter(self._model, basis)
            trained, lr = [adapter.v], lr or default_lr(basis, "sft")
        learner = Learner(self._model, adapter, temperature=1.0, workers=cores())
        losses = self._fit(learner, trained, lr, seed, steps)
        groups = [self._group(sample) for sample in self.validation]
        found = learner.measure(groups)
        tokens = sum(len(group.completions[0]) for group in groups)
        facts = {
            "arm": arm,
            "seed": seed,
            "steps": steps,
            "lr": lr,
            "numbers": sum(part.numel() for part in trained),
            "losses": losses,
            "validation_nats": -sum(float(each.sum()) for each in found) / tokens,
            "reward": self._reward(learner),
            "seconds": time.monotonic() - began,
        }
        learner.close()
        adapter.detach()
        return facts

    def _fit(self, learner: Learner, trained: list[Tensor], lr: float, seed: int, steps: int) -> list[float]:
        adam = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.99))
        order = np.random.default_rng((seed, 3)).permutation(len(self.train))[: steps * BATCH]
        losses = []
        for step in range(steps):
            groups = [self._group(self.train[i]) for i in order[step * BATCH : (step + 1) * BATCH]]
            tokens = sum(len(group.completions[0]) for group in groups)
            adam.zero_grad()
            total = 0.0
            for part in (groups[: BATCH // 2], groups[BATCH // 2 :]):
                loss = -torch.stack([each.sum() for each in learner.logprobs(part)]).sum() / tokens
                loss.backward()
                total += float(loss.detach())
            adam.param_groups[0]["lr"] = lr * (1 - 0.9 * step / max(steps - 1, 1))  # as the trainer has it
            adam.step()
            losses.append(total)
        return losses

    def _reward(self, learner: Learner) -> float:
        """Return the mean reward of greedy answers, in torch, as the LoRA is not in the deployed model."""
        values = []
        for sample in self.validation:
            tokens = torch.tensor([self._llm.encode(sample)[0]])
            end = self._llm.vocabulary.turn_end
            with torch.no_grad():
                out = self._model.generate(
                    tokens, max_new_tokens=LONGEST, do_sample=False, eos_token_id=end, pad_token_id=end
                )
            values.append(
                reward(self._llm.vocabulary.decode(out[0, tokens.shape[1] :].tolist()), sample.answer)
            )
        return float(np.mean(values))

    def _group(self, sample: Sample) -> Group:
        prompt = np.array(self._llm.encode(sample)[0], np.int32)
        text = self._llm.tokenize(str(sample.answer).encode(), add_bos=False, special=False)
        answer = np.array([*text, self._llm.vocabulary.turn_end], np.int32)
        return Group(prompt, [answer], np.ones(1, np.float32))


def main() -> None:
    """Run what the record lacks, and print a row a run."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument("folder", type=Path, help="2017-06-custom-intent-engines")
    arguments.add_argument("--arms", nargs="+", default=["rank-2", "rank-8", "lora-8"], help="rank-K, lora-K")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--lr", type=float, help="of every arm; by default each has its own")
    arguments.add_argument("--study", type=Path, default=Path("ranks.jsonl"), help="the record")
    options = arguments.parse_args()
    asked = [(arm, seed, options.steps, options.lr) for seed in options.seeds for arm in options.arms]
    keys = "arm", "seed", "steps", "asked_lr"
    done = {tuple(row[key] for key in keys) for row in bench.read_study(options.study)}
    if left := [each for each in asked if each not in done]:
        with tempfile.TemporaryDirectory() as work:
            run = Run(export(Path(work))[0], options.folder)
            for each in left:
                bench.keep(options.study, run.measured(*each) | {"asked_lr": options.lr})
    rows = [row for row in bench.read_study(options.study) if tuple(row[key] for key in keys) in asked]
    names = ["arm", "seed", "lr", "numbers", "loss after 10", "20", "30", "40", "validation, nats", "reward"]
    print(bench.table(names, [cells(row) for row in rows]))


def cells(row: dict[str, Any]) -> list[str]:
    """Return a run as a row of the table; a loss is the mean of the five steps before."""
    at = [row["losses"][max(step - 5, 0) : step] for step in (10, 20, 30, 40)]
    losses = [f"{np.mean(part):.2f}" if len(part) == 5 else "" for part in at]
    shown = [row["arm"], str(row["seed"]), f"{row['lr']:.3g}", f"{row['numbers']:,}", *losses]
    return [*shown, f"{row['validation_nats']:.3f}", f"{row['reward']:.3f}"]


if __name__ == "__main__":
    main()
