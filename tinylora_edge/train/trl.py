"""TRL as the engine of training: the same task and basis on as many GPUs as accelerate starts processes for.

Every process holds the model and the whole vector; completions are shared out among them, and gradients of
v are averaged. Process 0 writes the files. What our own loop adds to GRPO is missing: a derived step size,
going back from a collapse, a clip relative to usual gradients.

The command line runs a recipe, the settings of a run in a TOML file, of which `--set` changes some:

    python -m tinylora_edge.train.trl BUNDLE -o FILE --recipe gsm8k.toml --set options.lr=1e-5

On several GPUs `accelerate launch --num_processes 8 --mixed_precision bf16 -m` starts it, in the place of
`python -m`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import runtime
from ..errors import MissingExtraError, TinyLoraError, TrainError
from ..eval.measure import Measuring
from ..formats.bundle import BundleOrPath, load_bundle
from ..formats.gguf_transformers import read_once
from ..jsonio import restored
from ..process import cores
from ..runtime.learning.state import Report
from ..tasks import Completion, Sample, Task, load_task
from ..vector import MicroVector
from ..wire.values import BITS
from ..writes import open_file
from .adapter import default_dtype, load_model
from .learner import IMPORTANCE_CAP
from .options import Options, Outcome, Phase, Result, write_result
from .run import run_folder, unfinished

try:
    import accelerate
    import datasets
    import transformers
    import trl
    from trl import GRPOConfig, GRPOTrainer

    from .peft_adapter import peft_model, vector_of
except ModuleNotFoundError as error:
    raise MissingExtraError("the TRL engine", str(error.name), "train") from None

_COMPARED = 64  # most prompts whose tokens are compared with the deployed engine's
_METRICS = {
    "reward": "reward",
    "length": "completions/mean_length",
    "loss": "loss",
    "grad": "grad_norm",
    "lr": "learning_rate",
    "kl": "kl",
    "mismatch": "sampling/sampling_logp_difference/mean",
    "step_s": "step_time",
}
"""Name of a metric in this project -> its name in TRL."""

_OWN = "output_dir", "eval_on_start", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"
"""Fields of `trl.GRPOConfig` that nobody may set."""

STEPS = 40
"""Steps of a run where neither steps nor epochs are given."""


def train_trl(
    bundle: BundleOrPath,
    task: Task,
    output: str | PathLike[str],
    *,
    options: Options | None = None,
    grpo: Mapping[str, Any] | None = None,
    resume: bool = False,
    report: Report = lambda metrics: None,
) -> Outcome:
    """Train a micro-vector with TRL and write its frame; call it in every process of the launch.

    Arguments, errors and what it writes are those of `train`, on a file system that all processes see. The
    vector is the best by validation (`Options.split`): the mean reward of one completion of each of its
    prompts, drawn at the task's temperature. Where none was better than the base, it is zeros.

    `options.lr` is needed; options that TRL has no place for are refused or ignored. Each validation is a
    checkpoint. `grpo` are fields of `trl.GRPOConfig` that override those made of the options, such as
    `beta`, `use_vllm`, or `num_train_epochs` instead of `steps`. Metrics are reported in process 0.
    """
    options, output = options or Options(), Path(output)
    found = load_bundle(bundle)
    found.check_base()
    basis = options.basis(found.bases)
    options.framed(MicroVector.zeros(basis), basis)  # refuses an unknown dtype before the run
    chosen = grpo_fields(task, options, grpo or {}, processes=int(os.environ.get("WORLD_SIZE", "1")))
    with run_folder(output, lead=os.environ.get("RANK", "0") == "0") as folder:
        checkpoints = folder / "trl"
        try:
            config = GRPOConfig(**{"output_dir": str(checkpoints), "eval_on_start": not resume} | chosen)
        except (TypeError, ValueError) as error:
            raise TrainError(f"TRL does not take these settings: {error}") from None
        lead = config.process_index == 0
        last = _last_checkpoint(checkpoints, resume)
        source = Path(options.weights or found.base)
        model, tokenizer = load_model(source, _dtype(options)), load_tokenizer(source)
        validation, others = options.split(task)
        samples, held = [*validation, *others], len(validation)
        room = model.config.max_position_embeddings - config.max_completion_length
        # Only the lead compares with the deployed file: each process that opens it needs memory for it.
        check_prompts(tokenizer, task, samples, room=room, bundle=found if lead else None)
        ids = model.generation_config.eos_token_id
        ends = {*(ids if isinstance(ids, list | tuple) else (ids,)), tokenizer.eos_token_id} - {None}
        reward = reward_function(task, samples, tokenizer, frozenset(ends))
        wrapped = peft_model(model, basis)
        trainer = GRPOTrainer(
            model=wrapped,
            reward_funcs=reward,
            args=config,
            train_dataset=_data_set(samples, held, len(samples), tokenizer),
            eval_dataset=_data_set(samples, 0, held, tokenizer),
            processing_class=tokenizer,
            callbacks=[_Callback(wrapped, report if lead else None)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        curve = _curve(trainer.state.log_history)
        if not any(row.get("signal") for row in curve):
            if lead:
                shutil.rmtree(checkpoints, ignore_errors=True)
            raise TrainError(
                f"task {task.name} gives no signal: in {trainer.state.global_step} steps all samples of "
                "every prompt got the same reward. Make the task easier or harder, raise the temperature, or "
                "draw more samples"
            )
        outcome = Outcome(output, _result(wrapped, trainer.state, curve))
        check_agreement(outcome.result.vector)
        if lead:
            vector = options.framed(outcome.result.vector, basis)
            engine = {"trl": trl.__version__, "processes": config.world_size, "grpo": chosen}
            write_result(vector, basis, task, options, outcome, curve, engine=engine)
            shutil.rmtree(checkpoints, ignore_errors=True)
            if options.evaluate:
                threads = options.workers or cores()
                with closing(runtime.load(found, engine="llama", n_ctx=64, n_threads=threads)) as llm:
                    size = len(vector.to_bytes(basis))
                    measuring = Measuring(llm, task, vector, size, report, threads, validation)
                    outcome = replace(outcome, measured=measuring.run())
                write_result(vector, basis, task, options, outcome, curve, engine=engine)
    return outcome


def grpo_fields(task: Task, options: Options, grpo: Mapping[str, Any], *, processes: int) -> dict[str, Any]:
    """Return the fields of `trl.GRPOConfig` for a task and options; those of `grpo` override them."""
    refused = {
        f"method {options.method}": options.method not in (None, "grpo"),
        "minutes": options.minutes is not None,
        "start": options.start is not None,
        "under": options.under is not None,
        "schema": task.schema is not None,
        "tools": any(sample.tools for sample in task.train),
        "keep": options.keep,
        "frame_dtype": options.frame_dtype in BITS,
    }
    for name, used in refused.items():
        if used:
            raise TrainError(
                f"the TRL engine has no {name}: leave it out, or train with `tinylora-edge train`"
            )
    for name in _OWN:
        if name in grpo:
            raise TrainError(
                f"{name} cannot be set: a run has its own files, and finds the best vector by itself"
            )
    if "use_transformers_continuous_batching" in grpo:
        raise TrainError(
            "TRL's continuous batching casts the whole model, and v with it, to bfloat16: leave "
            "use_transformers_continuous_batching out"
        )
    if options.lr is None and "learning_rate" not in grpo:
        raise TrainError(
            "the TRL engine has no step size of its own: give one with options.lr (`train` reports its own)"
        )
    if grpo.get("use_vllm") and not options.weights:
        raise TrainError("vLLM generates with the original weights: name them with options.weights")
    completions = options.prompts * options.samples
    each = int(grpo.get("per_device_train_batch_size", max(1, completions // processes)))
    if completions % (each * processes) and "gradient_accumulation_steps" not in grpo:
        raise TrainError(
            f"{completions} completions a step ({options.prompts} prompts x {options.samples}) do not "
            f"divide among {processes} processes x {each}: change prompts, samples, processes or "
            "per_device_train_batch_size"
        )
    return {
        "max_steps": -1 if "num_train_epochs" in grpo else options.steps or STEPS,
        "learning_rate": options.lr,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.99,
        "seed": options.seed,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": completions // (each * processes),
        "per_device_eval_batch_size": each,
        "num_generations": options.samples,
        "num_generations_eval": 1,
        "max_completion_length": task.max_tokens,
        "temperature": task.temperature,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "beta": 0.0,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": IMPORTANCE_CAP,
        "eval_strategy": "steps",
        "eval_steps": options.validate_every,
        "save_strategy": "steps",
        "save_steps": options.validate_every,  # the best by validation is a checkpoint
        "save_total_limit": 1,  # beside the best one
        "load_best_model_at_end": True,
        "metric_for_best_model": "reward",
        "greater_is_better": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": _dtype(options) == "bf16",
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "activation_checkpointing": False,
        # The buffers are the factors: all processes have the same, and they would be sent at every step.
        "ddp_broadcast_buffers": False,
        "ddp_find_unused_parameters": False,
    } | dict(grpo)


def _dtype(options: Options) -> str:
    return options.dtype or default_dtype(torch.cuda.is_available())


def reward_function(
    task: Task, samples: Sequence[Sample], tokenizer: Any, ends: frozenset[int]
) -> Callable[..., list[float]]:
    """Return the task's reward as TRL calls it: with a batch's completions and columns of the data set."""

    def reward(completion_ids: list[list[int]], index: list[int], **kwargs: Any) -> list[float]:
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids]
        return [
            task.score(Completion(text, bool(ids) and ids[-1] in ends, len(ids)), samples[position])
            for text, ids, position in zip(texts, completion_ids, index, strict=True)
        ]

    return reward


def check_prompts(
    tokenizer: Any,
    task: Task,
    samples: Sequence[Sample],
    *,
    room: int,
    bundle: BundleOrPath | None = None,
) -> None:
    """Refuse prompts that TRL cannot run or, if `bundle` is given, makes other tokens of than the device.

    Raises:
        TrainError: prompts of two kinds, chat prompts without a chat template, a prompt of more tokens than
            `room`, or other tokens than the deployed engine's.
    """
    kinds = {isinstance(_rendered(tokenizer, sample), str) for sample in samples}
    if len(kinds) > 1:
        raise TrainError(f"task {task.name} mixes raw and chat prompts: TRL takes only one kind at a time")
    if kinds == {False} and tokenizer.chat_template is None:
        raise TrainError("the tokenizer has no chat template: use text prompts, or other weights")
    tokens = [_encode(tokenizer, sample) for sample in samples]
    longest = max(map(len, tokens))
    if longest > room:
        raise TrainError(
            f"the longest prompt of task {task.name} has {longest} tokens, but the model's context leaves "
            f"room for {room} beside what is generated: shorten it, or lower the token limit"
        )
    if bundle is None:
        return
    with closing(runtime.load(bundle, engine="llama", n_ctx=64)) as deployed:
        for sample, found in zip(samples[:_COMPARED], tokens, strict=False):
            expected, _ = deployed.encode(sample)
            if found != expected:
                raise TrainError(
                    f"prompt {sample.text[:80]!r} becomes other tokens here ({len(found)}: {found[:8]}...) "
                    f"than on the device ({len(expected)}: {expected[:8]}...): tokenizer or template differ. "
                    "Use weights that match the deployed file"
                )


def load_tokenizer(source: Path) -> Any:
    """Load the tokenizer of a GGUF file or of a Hugging Face directory."""
    try:
        with read_once():
            folder, file = (source.parent, source.name) if source.is_file() else (source, None)
            return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except Exception as error:  # whatever the libraries of its formats raise
        raise TrainError(
            f"transformers finds no tokenizer in {source}: {error}. "
            "Pass a directory with weights and tokenizer with --set options.weights=DIR"
        ) from error


def check_agreement(vector: MicroVector) -> None:
    """Raise a TrainError where the processes ended with different vectors: gradients were not shared then."""
    everywhere = accelerate.utils.gather_object([vector.values.tobytes()])
    if len(set(everywhere)) > 1:
        raise TrainError(
            f"the {len(everywhere)} processes ended with {len(set(everywhere))} different vectors: their "
            "gradients were not averaged. Launch with DDP: accelerate launch without FSDP and ZeRO-3"
        )


class _Callback(transformers.TrainerCallback):
    """Reports the metrics of each step, and guards v where a step has no signal. It runs in every process.

    `report` is None in all processes but the first.
    """

    def __init__(self, model: Any, report: Report | None) -> None:
        self._model, self._report = model, report

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep Adam from moving v by its momentum alone, in a step whose gradient is zero."""
        rows = [p for p in self._model.parameters() if p.requires_grad]
        if not any(p.grad is not None and p.grad.any() for p in rows):
            for row in rows:
                row.grad = None  # the optimizer skips parameters without a gradient

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate what the run ends with."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Add the norm of v to the history, which TRL keeps with its checkpoints, and report the row."""
        state.log_history[-1]["norm"] = vector_of(self._model).norm
        if self._report is not None:
            for row in _curve(state.log_history[-1:]):
                self._report(row)


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics in TRL's history under this project's names."""
    rows: list[dict[str, Any]] = []
    for logs in history:
        if "eval_reward" in logs:
            event = "validation" if logs["step"] else "start"
            rows.append({"event": event, "step": logs["step"], "validation": float(logs["eval_reward"])})
        elif "reward" in logs:
            found = {name: logs[key] for name, key in _METRICS.items() if logs.get(key) is not None}
            rows.append({"step": logs["step"], **found, "signal": 1 - logs["frac_reward_zero_std"]})
            rows[-1]["norm"] = logs["norm"]
    return rows


def _result(model: Any, state: Any, curve: Sequence[Mapping[str, Any]]) -> Result:
    """Return the result of a run, whose best vector is in the model."""
    start, best = curve[0]["validation"], float(state.best_metric)
    vector, step = vector_of(model), state.best_global_step
    if best <= start:
        vector, best, step = replace(vector, values=np.zeros_like(vector.values)), start, 0
    seconds = sum(row.get("step_s", 0.0) for row in curve)
    found = {"best_step": step, "steps": state.global_step, "seconds": seconds, "stopped": "done"}
    return Result(vector, (Phase("grpo", start, best, **found),))


def _data_set(samples: Sequence[Sample], first: int, end: int, tokenizer: Any) -> Any:
    rows = [{"index": i, "prompt": _rendered(tokenizer, samples[i])} for i in range(first, end)]
    return datasets.Dataset.from_list(rows)


def _rendered(tokenizer: Any, sample: Sample) -> str | list[dict[str, str]]:
    prompt = sample.rendered_by(template=tokenizer.chat_template is not None)
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _encode(tokenizer: Any, sample: Sample) -> list[int]:
    prompt = _rendered(tokenizer, sample)
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    found = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])


def _last_checkpoint(folder: Path, resume: bool) -> Path | None:
    last = transformers.trainer_utils.get_last_checkpoint(str(folder)) if folder.exists() else None
    if resume and last is None:
        raise TrainError(f"there is no checkpoint in {folder} to resume from: start without --resume")
    if last is not None and not resume:
        raise unfinished(folder)
    return Path(last) if last else None


# Recipes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run: what `load_task` takes, and fields of `Options` and of `trl.GRPOConfig`."""

    task: str
    reward: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    held_out: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    grpo: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: str | PathLike[str] | None, changes: Sequence[str] = ()) -> tuple[Recipe, Options]:
    """Read a recipe and its options; without a path, `changes` are the whole recipe.

    `changes` are `key=value` with a dotted key, such as `options.prompts=8`; the value is TOML, or text.

    Raises:
        TrainError: the file cannot be read, names something unknown, or has a value of another type than its
            setting's.
    """
    try:
        table: dict[str, Any] = {}
        if path is not None:
            with open_file(path) as file:
                table = tomllib.load(file)
        for change in changes:
            key, equals, text = change.partition("=")
            if not equals or not key:
                raise TrainError(f"--set {change}: expected KEY=VALUE, such as options.prompts=8")
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except ValueError:
                value = text
            *parents, name = key.split(".")
            inner = table
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[name] = value
        recipe = restored(Recipe, table)
        return recipe, restored(Options, recipe.options)
    except OSError as error:
        raise TrainError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:  # such as a key inside a value that is no table
        raise TrainError(f"{path or '--set'}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinylora_edge.train.trl", description="Train a micro-vector with TRL."
    )
    add = parser.add_argument
    add("bundle", help="of the base that is deployed")
    add("-o", "--output", required=True, help="the frame file to write")
    add("--recipe", help="TOML file with settings")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: options.lr=1e-5")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args(arguments)
    if not sys.warnoptions:  # transformers, TRL and accelerate warn of each other's next versions
        warnings.filterwarnings("ignore", category=FutureWarning)

    def show(metrics: dict[str, Any]) -> None:
        print(json.dumps(metrics), flush=True)

    sys.path.append(str(Path(args.recipe or ".").parent.resolve()))  # a reward's module may be there
    try:
        recipe, options = read_recipe(args.recipe, args.set)
        asked = {name: getattr(recipe, name) for name in ("reward", "held_out", "max_tokens", "temperature")}
        task, grpo = load_task(recipe.task, **asked), recipe.grpo
        outcome = train_trl(
            args.bundle, task, args.output, options=options, grpo=grpo, resume=args.resume, report=show
        )
    except (TinyLoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = outcome.result
    if os.environ.get("RANK", "0") == "0":
        best = {"start": result.start_score, "best": result.best_score, "best_step": result.best_step}
        show({"event": "end", "output": str(outcome.path), **best})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
