"""Training of the same task and basis by TRL's `GRPOTrainer`, on as many processes as accelerate starts.

    python -m tinylora_edge.train.trl BUNDLE -o FILE --recipe recipes/gsm8k.toml --model qwen2.5-7b --gpus 8

Every process holds the model and the whole vector; completions are shared out among them, and gradients of
v are averaged. Process 0 writes the files. What the engine of this project adds to GRPO and TRL does not
have stays away: a derived step size, going back from a collapse, a clip relative to usual gradients.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ... import runtime
from ...errors import MissingExtraError, TrainError
from ...formats.bundle import Bundle
from ...runtime.drift import Drift, drift_beside
from ...runtime.evaluation import Evaluation, evaluate
from ...runtime.llama.batch import batch_for, cores
from ...runtime.tuning.settings import Report
from ...tasks import Task
from ...vector import MicroVector
from ..model import default_dtype, load_model
from ..options import Options, Outcome
from ..output import metrics_file, run_folder, write_result

try:
    import accelerate
    import transformers
    import trl
    from peft import PeftModel
    from trl import GRPOConfig, GRPOTrainer

    from .peft_tinylora import peft_model
    from .prompts import check_prompts, data_set, end_ids, load_tokenizer, reward_function
    from .watch import Watch
except ModuleNotFoundError as error:
    raise MissingExtraError("the TRL engine", str(error.name), "train") from None

_OURS = {
    "output_dir": "the run's files lie beside the output",
    "use_transformers_continuous_batching": "TRL then casts the whole model, and v with it, to bfloat16",
}
"""Fields of `GRPOConfig` that cannot be passed, and why."""


def train_trl(
    bundle: str | PathLike[str],
    task: Task,
    output: str | PathLike[str],
    *,
    options: Options | None = None,
    grpo: Mapping[str, Any] | None = None,
    resume: bool = False,
    report: Report = lambda metrics: None,
) -> Outcome:
    """Train a micro-vector with TRL and write its frame; call it in every process of the launch.

    Writes what `train` writes: `output`, `output`.json and the directory `output`.run, on a file system
    that all processes see. The vector is the best by validation: the mean reward of one completion, drawn
    at the task's temperature, of each of the first `TrainSettings.validation` training prompts.

    Args:
        bundle: of the base that is deployed.
        task: prompts and reward.
        output: the frame file; it must not exist.
        options: of the run. `settings.lr` is needed; `settings.anneal`, `settings.clip_norm`,
            `settings.tolerance`, `rollouts`, `half_copy` and `sequences` (but for the evaluation)
            have no meaning here.
        grpo: fields of `trl.GRPOConfig` that go before what follows from `options`, such as
            `per_device_train_batch_size`, `use_vllm`, or `num_train_epochs` instead of `settings.steps`.
        resume: go on from the last checkpoint.
        report: called in process 0 with the metrics of every step.

    Returns:
        The outcome: the same in every process, but for the evaluation, which process 0 alone makes.

    Raises:
        TrainError: the task or the options do not work out, or the processes came apart.
        BaseMismatchError: the base is not one that the basis was exported for.
        MissingExtraError: trl, peft, accelerate or datasets is not installed.
        OSError: a file cannot be written.
    """
    options = options or Options()
    output = Path(output)
    if output.exists():
        raise TrainError(f"{output} exists already: choose another output, or remove it first")
    found = Bundle.find(bundle)
    found.check_base()
    folder = output.with_name(f"{output.name}.run")
    checkpoints = folder / "trl"
    fields = grpo_fields(task, options, grpo or {}, processes=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        config = GRPOConfig(output_dir=str(checkpoints), eval_on_start=not resume, **fields)
    except (TypeError, ValueError) as error:
        raise TrainError(f"TRL does not take these settings: {error}") from None
    lead = config.process_index == 0
    last = _last_checkpoint(checkpoints, resume)
    source = Path(options.weights or found.base)
    model, tokenizer = load_model(source, options.dtype), load_tokenizer(source)
    samples, held = list(task.train), options.settings.validation
    room = model.config.max_position_embeddings - config.max_completion_length
    # one process compares with the deployed file: each that opens it needs memory for it
    check_prompts(tokenizer, task, samples, room=room, bundle=bundle if lead else None)
    reward = reward_function(task, samples, tokenizer, end_ids(model, tokenizer))
    wrapped = keep_local(peft_model(model, found.basis))
    with ExitStack() as stack:
        write: Report | None = None
        if lead:
            stack.enter_context(run_folder(output, checkpoints.name))
            done = int(last.name.rpartition("-")[2]) if last else 0
            write = stack.enter_context(metrics_file(folder, done, report))
        watch = Watch(wrapped, options.settings, folder / "validation.json", write, resume=resume)
        trainer = GRPOTrainer(
            model=wrapped,
            reward_funcs=reward,
            args=config,
            train_dataset=data_set(samples, held, len(samples), tokenizer),
            eval_dataset=data_set(samples, 0, held, tokenizer),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        result = watch.result(task)
        _check_agreement(result.vector)
        outcome = Outcome(output, result, None, None)
        if lead:
            vector = replace(result.vector, dtype=options.wire, sequence=options.sequence)
            if options.evaluate:
                outcome = Outcome(output, result, *_evaluate(bundle, task, vector, options, write or report))
            engine = {"trl": trl.__version__, "processes": config.world_size, "grpo": fields}
            write_result(output, folder, vector, found.basis, task, options, outcome, engine=engine)
            shutil.rmtree(checkpoints, ignore_errors=True)
    return outcome


def grpo_fields(
    task: Task, options: Options, given: Mapping[str, Any], *, processes: int = 1
) -> dict[str, Any]:
    """Return the fields of `trl.GRPOConfig` that say what a task and options say.

    Args:
        task: token limit and temperature.
        options: of the run.
        given: fields that go before.
        processes: of the launch.

    Raises:
        TrainError: options or fields that cannot work here.
    """
    settings, loss = options.settings, options.loss
    if options.method != "grpo":
        raise TrainError(f"the TRL engine trains with GRPO, not {options.method}: leave out --engine trl")
    if settings.anchor:
        raise TrainError(
            f"the TRL engine has no anchor, and settings.anchor is {settings.anchor:g}: leave it out, or "
            "leave out --engine trl"
        )
    unknown = {"lora": options.lora is not None, "start": options.start is not None}
    for name in [
        name for name, given_ in (unknown | {"settings.trials": bool(settings.trials)}).items() if given_
    ]:
        raise TrainError(f"the TRL engine has no {name}: leave it out, or leave out --engine trl")
    for name in _OURS.keys() & given.keys():
        raise TrainError(f"{name} cannot be set: {_OURS[name]}")
    if settings.lr is None and "learning_rate" not in given:
        raise TrainError(
            "the TRL engine derives no step size: give one with settings.lr (the default engine reports the "
            "one that it derives as lr)"
        )
    if not 0 < settings.validation <= len(task.train) - settings.prompts:
        raise TrainError(
            f"task {task.name} has {len(task.train)} training prompts, but {settings.validation} for "
            f"validation (at least 1) and {settings.prompts} a step are needed: change those settings"
        )
    completions = settings.prompts * options.samples
    each = int(given.get("per_device_train_batch_size", max(1, completions // processes)))
    if completions % (each * processes) and "gradient_accumulation_steps" not in given:
        raise TrainError(
            f"{completions} completions a step ({settings.prompts} prompts x {options.samples}) do not "
            f"divide among {processes} processes x {each}: change prompts, samples, processes or "
            "per_device_train_batch_size"
        )
    half = (options.dtype or default_dtype()) == "bf16"
    fields: dict[str, Any] = {
        "max_steps": -1 if "num_train_epochs" in given else settings.steps,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.99,
        "seed": settings.seed,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": completions // (each * processes),
        "per_device_eval_batch_size": each,
        "num_generations": options.samples,
        "num_generations_eval": 1,
        "max_completion_length": task.max_tokens,
        "temperature": task.temperature,
        "num_iterations": settings.epochs,
        "loss_type": loss.kind,
        "scale_rewards": "group" if loss.scale else "none",
        "beta": loss.kl,
        "epsilon": 1e9 if loss.clip is None else loss.clip,
        "vllm_importance_sampling_correction": loss.importance_cap > 0,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": loss.importance_cap or None,
        "eval_strategy": "steps",
        "eval_steps": settings.validate_every,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": half,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "gradient_checkpointing": False,
        # the buffers are the factors: the same everywhere, and megabytes at every step
        "ddp_broadcast_buffers": False,
        "ddp_find_unused_parameters": False,
    }
    return fields | dict(given)


def keep_local(wrapped: PeftModel) -> PeftModel:
    """Make PEFT forget where a model came from, and return it.

    At every checkpoint PEFT would else ask the Hugging Face hub about a bundle or a path by its name, since
    there is no config.json in it, only to compare sizes of vocabularies.
    """
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = ""
    return wrapped


def _last_checkpoint(folder: Path, resume: bool) -> Path | None:
    last = transformers.trainer_utils.get_last_checkpoint(str(folder)) if folder.exists() else None
    if resume and last is None:
        raise TrainError(f"there is no checkpoint in {folder} to resume from: start without --resume")
    if last is not None and not resume:
        raise TrainError(
            f"{folder} holds the checkpoint of an unfinished run: go on with --resume, or remove it"
        )
    return Path(last) if last else None


def _check_agreement(vector: MicroVector) -> None:
    """All processes must end with the same bytes, or gradients were not shared."""
    everywhere = accelerate.utils.gather_object([vector.values.tobytes()])
    if len(set(everywhere)) > 1:
        raise TrainError(
            f"the {len(everywhere)} processes ended with {len(set(everywhere))} different vectors: their "
            "gradients were not averaged. Launch with DDP: accelerate launch without FSDP and ZeRO-3"
        )


def _evaluate(
    bundle: str | PathLike[str], task: Task, vector: MicroVector, options: Options, report: Report
) -> tuple[Evaluation, Evaluation, Drift | None]:
    """Base and vector on the held-out prompts, and the drift, in the deployed engine."""
    threads = options.workers or cores()
    with closing(runtime.load(bundle, engine="llama", n_ctx=64, n_threads=threads)) as llm:
        room: dict[str, Any] = {"sequences": options.sequences, "n_threads": threads}
        with batch_for(llm, task.held_out, task.max_tokens, **room) as batch:
            base, personalized = evaluate(batch, task, None), evaluate(batch, task, vector)
        drift = drift_beside(
            llm,
            vector,
            count=options.drift,
            complain=lambda why: report({"event": "no drift", "why": why}),
            **room,
        )
        return base, personalized, drift
