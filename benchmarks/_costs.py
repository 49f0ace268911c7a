"""What it costs to personalize a model: an export, a load, a swap, a token, a server, training.

Times of one thread are processor times of the process, which other work on the machine does not change. With
more threads, and of servers, they are wall-clock times, so measure these on a quiet machine.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import _common as bench  # first: it sets what libraries read when loaded
import gguf
import llama_cpp
import numpy as np
import onnxruntime_genai as og
import psutil
from _records import crowds
from _subjects import frames, write_stock_lora
from numpy.typing import NDArray

from tinylora_edge import Basis, Factors, MicroVector, runtime
from tinylora_edge.formats.gguf import open_gguf
from tinylora_edge.formats.side_tensors import load_bases
from tinylora_edge.runtime.engine import Part

CHILD = """
import json, os, resource, shutil, sys, time
sys.path.insert(0, sys.argv.pop(1))
import _common as bench
from tinylora_edge.cli import main
from tinylora_edge.exporters import export
from tinylora_edge.exporters.weights.gguf import GGUFWeights
def spent():
    return sum(os.times()[:4]), time.perf_counter()
keep, build = sys.argv.pop(1), export.build
def kept(model, folder, *more):
    made = build(model, folder, *more)
    shutil.copytree(folder, keep, copy_function=os.link)
    return made
export.build, begun = kept, spent()
if sys.argv[1] == "export":
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise
else:
    weights = GGUFWeights(__import__("pathlib").Path(sys.argv[2]))
    for module in weights.modules:
        for matrix in weights.matrices(module):
            matrix.rows()
cpu, wall = (end - begin for begin, end in zip(begun, spent()))
others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_bytes": max(bench.peak_resident(), others)}))
"""
TRAIN = """
import json, pathlib, statistics, sys, time
sys.path.insert(0, sys.argv[1])
import _common as bench
from tinylora_edge.tasks.load import load_task
from tinylora_edge.train import Options, train
ends, shares = [], []
def tell(row):
    if "step" in row:
        ends.append(time.process_time())
        shares.append(row.get("signal", 1.0))
method, task, steps = sys.argv[3], load_task(sys.argv[4]), int(sys.argv[5])
options = Options(method=method, steps=steps, workers=1, validation=2, validate_every=steps, evaluate=False)
train(sys.argv[2], task, pathlib.Path(sys.argv[6]), options=options, report=tell)
taken = [end - begin for begin, end in zip(ends[:-2], ends[1:-1])]
facts = {"step_s": statistics.median(taken), "signal": statistics.mean(shares[1:-1])}
print(json.dumps(facts | {"peak_bytes": bench.peak_resident()}))
"""
# Not mapped, as llama_cpp.Llama loads a base with a lora_path.
UNMAPPED: dict[str, Any] = {"verbose": False, "use_mmap": False, "n_ctx": 256, "n_batch": 64}
SIZES: dict[str, dict[str, Any]] = {
    "13 numbers": {"numbers": 13},
    "rank 2": {"rank": 2},
    "rank 64x8": {"rank": (64, 8)},
}
LARGEST = "rank 64x8"
PLAIN = 1, 64  # ranks of stock LoRAs: the slope is the cost of a rank, the rest that of any adapter
PROMPT, TOKENS = 2, 4  # tokens of a prompt, which are not timed, and of an answer
STEPS = 5  # of a training
LOUD = 40.0  # Euclidean norm of a vector that is large enough to change the answer
QUESTION = "Write a Python function that returns the n-th Fibonacci number. Only the code."


def child(*words: str, keep: Path | None = None) -> dict[str, Any]:
    """Export a model, or read all its weights once, in a process of its own.

    Args:
        keep: where the base graph goes, before the factors are in it.
    """
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(keep), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        most = 0
        while running.poll() is None:
            most = max(most, anonymous(psutil.Process(running.pid)))
            time.sleep(0.05)
        out, errors = running.communicate()
    if running.returncode:
        return {"refused": errors.strip().splitlines()[-1].replace(str(Path(words[1]).parent) + "/", "")}
    return json.loads(out.splitlines()[-1]) | {"anonymous_bytes": most}


def anonymous(process: psutil.Process) -> int:
    """Return the resident bytes of a process and its children, without those of mapped files."""
    found = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            memory = each.memory_info()
            found += memory.rss - getattr(memory, "shared", 0)
    return found


def training(bundle: Path) -> dict[str, Any]:
    """Return the seconds of processor time that a step of the large vector takes, and the peak memory.

    The first step, which finds the coordinates, and the last, which judges, are left out.
    """
    found = {}
    for method, task in (("sft", "snips"), ("grpo", "list-lookup")):
        with tempfile.TemporaryDirectory() as folder:
            words = [str(Path(__file__).parent), str(bundle), method, task, str(STEPS), f"{folder}/v.bin"]
            done = subprocess.run([sys.executable, "-c", TRAIN, *words], stdout=subprocess.PIPE, check=False)
        if not done.returncode:  # without a chat template there are no lists
            found[method] = json.loads(done.stdout.splitlines()[-1])
    return found


def threads_of(count: int) -> dict[str, Any]:
    return {"n_threads": count, "n_threads_batch": count}


def timed(work: Callable[[], Any], threads: int = 1) -> float:
    clock = time.process_time if threads == 1 else time.perf_counter
    begun = clock()
    work()
    return clock() - begun


def costs(
    model: Path, wanted: Collection[str], done: Collection[str], rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the figures of each measurement that is not done; bundles stay beside the model.

    Graphs are left out where onnxruntime-genai's builder makes none, and servers, which are asked in chats,
    where there is no chat template.
    """
    bundle, graph = model.with_suffix(".bundle"), model.with_suffix(".onnx")
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "export": lambda: exports(model, bundle),
        "load": lambda: loads(model, bundle, rounds),
        "swap": lambda: swaps(bundle, rounds),
        "token": lambda: tokens(bundle, 1, rounds),
        "token, 2 threads": lambda: tokens(bundle, 2, rounds),
        "onnx": lambda: graphs(model, graph),
        "onnx token": lambda: graph_tokens(model, bundle, graph, 1, rounds),
        "onnx token, 2 threads": lambda: graph_tokens(model, bundle, graph, 2, rounds),
        "onnx token, 16 rows": lambda: graph_tokens(model, bundle, graph, 1, rounds, rows=16),
        "likeness": lambda: likeness(bundle, graph),
        "server": lambda: servers(bundle, graph),
        "training": lambda: training(bundle),
    }
    chats = open_gguf(model).get("tokenizer.chat_template") is not None
    for what in measures:
        of_graph = what == "likeness" or what.startswith("onnx ")
        if what in done or (wanted and what not in wanted):
            continue
        if (chats or what != "server") and (graph.exists() or not of_graph):
            yield what, measures[what]()


def exports(model: Path, bundle: Path) -> dict[str, Any]:
    found = {"plain pass": child("plain", str(model))}
    for words, outputs in (("--rank 8", "8"), ("--outputs 64", "64")):
        shutil.rmtree(bundle, ignore_errors=True)
        found[words] = child("export", str(model), "-o", str(bundle), "--json", "--outputs", outputs)
        found[words] |= {"basis_bytes": (bundle / "basis.gguf").stat().st_size} | quality(bundle)
    return found | {"model_bytes": model.stat().st_size}


def quality(bundle: Path) -> dict[str, Any]:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    own = {"modules": manifest["basis"]["modules"], "residual": manifest["factors"]["worst_residual"]}
    return own | manifest.get("onnx", {})


def graphs(model: Path, graph: Path) -> dict[str, Any]:
    """Export a graph with the weights of the GGUF, in 8 bits where a graph cannot have their type."""
    base = graph.with_suffix(".base")
    for folder in (graph, base):
        shutil.rmtree(folder, ignore_errors=True)
    found = child("export", str(model), "-o", str(graph), "--format", "onnx", "--json", keep=base)
    if "refused" not in found:
        found |= {"bytes": sum(each.stat().st_size for each in (graph / "onnx").iterdir())} | quality(graph)
    return found


def loads(model: Path, bundle: Path, rounds: int) -> dict[str, Any]:
    (frame,) = frames(load_bases(bundle / "basis.gguf").basis(numbers=13), 1)
    options = {"verbose": False, **threads_of(1)}

    def load(make: Callable[[], llama_cpp.Llama]) -> float:
        gc.collect()
        made: list[llama_cpp.Llama] = []
        seconds = timed(lambda: made.append(make()))
        made[0].close()
        return seconds

    makers = {
        "Llama": lambda: llama_cpp.Llama(str(model), **options),
        "runtime.load": lambda: runtime.load(bundle, frame, **options),
    }
    return ratios(
        bench.interleave({n: lambda m=m: load(m) for n, m in makers.items()}, rounds), {"over_stock": "Llama"}
    )


class Stock:
    """Puts a stock LoRA into force in a model's context, whose weights all contestants share."""

    def __init__(self, llm: Any, path: Path) -> None:
        self.llm, self.adapter = llm, llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())

    def __call__(self) -> None:
        self.llm.clear()
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
        scales = (llama_cpp.ctypes.c_float * 1)(1.0)
        assert not llama_cpp.llama_set_adapters_lora(self.llm.ctx, pointers, 1, scales)


def swaps(bundle: Path, rounds: int) -> dict[str, Any]:
    """Return the times of swaps to vectors of all sizes, and of loading stock LoRAs of their ranks."""
    bases, runs = load_bases(bundle / "basis.gguf"), dict[str, Callable[[], float]]()
    with closing(runtime.load(bundle, **UNMAPPED, **threads_of(1))) as llm:
        for name, which in SIZES.items():
            basis = bases.basis(**which)
            vectors, lora = itertools.cycle(frames(basis, 4)), stock_lora(bundle, name, basis)
            runs[name] = lambda v=vectors: swap(llm, v)
            runs[f"stock, {name}"] = lambda path=lora: stock_init(llm, path)
        return ratios(bench.interleave(runs, 5 * rounds), {"over_stock": "stock, {}"})


def tokens(bundle: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Return the times of a token, and what the largest vector and its stock LoRA answer.

    All contestants share one model in memory, so that where its weights lie does not change the ratios.
    """
    bases = load_bases(bundle / "basis.gguf")
    with closing(runtime.load(bundle, **UNMAPPED, **threads_of(threads))) as llm:
        put: dict[str, Callable[[], Any]] = {"base": clearer(llm)}
        for name, which in SIZES.items():
            basis = bases.basis(**which)
            loud = MicroVector.random(basis, LOUD)
            put[name] = lambda v=loud: llm.swap(v)
            put[f"stock, {name}"] = Stock(llm, stock_lora(bundle, name, basis, loud))
        del put["stock, 13 numbers"]  # its rank is 2, which is measured already
        for rank in PLAIN:
            put[f"stock, rank {rank}"] = Stock(llm, plain_lora(bundle, bases.factors, rank))
        answers = {name: answer(llm, put[name]) for name in ("base", LARGEST, f"stock, {LARGEST}")}
        steps = {name: lambda p=each: token(llm, p, threads) for name, each in put.items()}
        times = bench.interleave(steps, rounds)
        clearer(llm)()
    return {"token": ratios(times, {"over_base": "base", "over_stock": "stock, {}"}), "answers": answers}


def stock_lora(bundle: Path, name: str, basis: Basis, vector: MicroVector | None = None) -> Path:
    path = bundle.with_suffix(f".{name}.gguf")
    write_stock_lora(path, basis, vector)
    return path


def clearer(llm: Any) -> Callable[[], None]:
    def clear() -> None:
        llm.clear()
        assert not llama_cpp.llama_set_adapters_lora(llm.ctx, None, 0, None)  # stock ones, unknown to it

    return clear


def swap(llm: Any, vectors: Iterator[bytes]) -> float:
    """Return the seconds of a swap, in a context that has a token."""
    llm.reset()
    llm.eval([1])
    vector = next(vectors)
    return timed(lambda: llm.swap(vector))


def stock_init(llm: llama_cpp.Llama, path: Path) -> float:
    made: list[Any] = []
    seconds = timed(lambda: made.append(llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())))
    llama_cpp.llama_adapter_lora_free(made[0])
    return seconds


def plain_lora(bundle: Path, factors: Factors, rank: int) -> Path:
    """Write a LoRA of small random numbers for every module."""
    path = bundle.with_suffix(f".{rank}.gguf")
    writer, random = gguf.GGUFWriter(path, factors.architecture), np.random.default_rng(0)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for module, a, b in zip(factors.modules, factors.a, factors.b, strict=True):
        shapes = {"a": (*a.shape[:-2], rank, a.shape[-1]), "b": (*b.shape[:-1], rank)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{module}.lora_{name}", np.float32(1e-4) * random.random(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drawn_ids(vocabulary: int, shape: int | tuple[int, ...]) -> NDArray[np.int32]:
    """Return random token ids, of usual words where the vocabulary is large enough."""
    bounds = min(1000, vocabulary // 2), min(40000, vocabulary)
    return np.random.default_rng(0).integers(*bounds, shape).astype(np.int32)


def token(llm: Any, put: Callable[[], Any], threads: int) -> float:
    """Return the seconds of a token, after a prompt that is not timed."""
    put()
    ids = drawn_ids(llm.n_vocab(), PROMPT + TOKENS).tolist()
    llm.reset()
    llm.eval(ids[:PROMPT])
    return timed(lambda: [llm.eval([each]) for each in ids[PROMPT:]], threads) / TOKENS


def answer(llm: Any, put: Callable[[], Any]) -> str:
    put()
    llm.reset()
    made: Any = llm.create_completion(QUESTION, temperature=0, max_tokens=16)
    return str(made["choices"][0]["text"])


class Graph:
    """A graph in onnxruntime-genai, and its vectors."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        config = og.Config(str(folder))
        if threads:
            options = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        self.model = og.Model(config)
        self.adapters = og.Adapters(self.model)

    def load(self, name: str, path: Path) -> None:
        self.adapters.load(str(path), name)

    def generator(self, adapter: str | None, batch: int, length: int) -> Any:
        params = og.GeneratorParams(self.model)
        # No answer ends early, so that all have the same number of tokens.
        params.set_search_options(do_sample=False, batch_size=batch, max_length=length, min_length=length)
        generator = og.Generator(self.model, params)
        if adapter is not None:
            generator.set_active_adapter(self.adapters, adapter)
        return generator


def graph_tokens(
    model: Path, bundle: Path, graph: Path, threads: int, rounds: int, rows: int = 1
) -> dict[str, Any]:
    """Return the times of a step: of the graph without factors, of rank 8 and of 64 x 8."""
    from tinylora_edge.exporters.factorize import Source
    from tinylora_edge.exporters.onnx import bake
    from tinylora_edge.formats.onnx_adapter import encode

    base, tall = graph.with_suffix(".base"), graph.with_suffix(".64x8")
    if not tall.exists():
        shutil.copytree(base, tall)
        bake(tall, load_bases(bundle / "basis.gguf").factors, Source(model, None, needs_gguf=True).heads)
    places = {"base": base, "rank 8": graph / "onnx", LARGEST: tall}
    config = json.loads((base / "genai_config.json").read_text("utf-8"))
    prompts = drawn_ids(config["model"]["vocab_size"], (rows, PROMPT))
    runs: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, place in places.items():
            opened, adapter = Graph(place, threads), None
            if name != "base":
                file = Path(folder) / f"{name}.onnx_adapter"
                side = load_bases((graph if name == "rank 8" else bundle) / "basis.gguf").factors
                r = np.random.default_rng(0).standard_normal((rows, side.r_size)) * 0.01
                file.write_bytes(encode(r.astype(np.float32), 0, 0))
                adapter = "v"
                opened.load(adapter, file)
            runs[name] = lambda m=opened, v=adapter: graph_token(m, v, prompts, threads)
        return {"token": ratios(bench.interleave(runs, rounds), {"over_base": "base"})}


def graph_token(model: Any, adapter: str | None, prompts: Any, threads: int) -> float:
    generator = model.generator(adapter, len(prompts), PROMPT + TOKENS + 1)
    generator.append_tokens(prompts)
    generator.generate_next_token()  # not timed, as it evaluates the prompt
    return timed(lambda: [generator.generate_next_token() for _ in range(TOKENS)], threads) / TOKENS


def distributions(llm: Any, texts: Sequence[tuple[list[int], list[int]]]) -> NDArray[np.float32]:
    """Return the log-probabilities at each token of the answers: float32 [tokens, vocabulary]."""
    longest, rows = max(len(prompt) + len(answer) for prompt, answer in texts), []
    engine = llm.engine(rows=2, n_ctx=longest, n_threads=1)
    for prompt, answer in texts:
        logits = np.array(engine.evaluate([Part(0, [*prompt, *answer[:-1]], len(answer))]), np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        rows.append(np.float32(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))))
        engine.cut(0, 0)
    engine.close()
    return np.concatenate(rows)


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Return KL(p || q) in nats, the mean over tokens."""
    return float((np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64).mean())


def likeness(bundle: Path, graph: Path) -> dict[str, Any]:
    """Return KL(GGUF || graph) in nats a token of the GGUF's greedy answers, and how many of these the graph
    would begin with the same tokens."""
    from tinylora_edge.eval.drift import BEGINNING, PROMPTS, TOKENS
    from tinylora_edge.tasks.load import load_general

    general, found = load_general()[:PROMPTS], []
    with closing(runtime.load(bundle, engine="llama", n_ctx=64, **threads_of(1))) as llm:
        with llm.batch(general, TOKENS, n_threads=1) as batch:
            prompts = batch.encode(general)
            drawn = [each.tokens.tolist() for each in batch.generate(prompts, max_tokens=TOKENS)]
        texts = list(zip(prompts, drawn, strict=True))
        found.append(distributions(llm, texts))
    with closing(runtime.load(graph, engine="onnx", n_ctx=512, n_threads=1)) as llm:
        found.append(distributions(llm, texts))
    starts = np.cumsum([0, *map(len, drawn[:-1])])
    likeliest = found[1].argmax(axis=-1)
    alike = sum(
        list(likeliest[start:][: len(answer[:BEGINNING])]) == answer[:BEGINNING]
        for start, answer in zip(starts, drawn, strict=True)
    )
    kl = divergence(*found)
    return {"kl": kl, "tokens": len(found[0]), "prompts": len(texts), "begin_alike": alike}


def servers(bundle: Path, graph: Path) -> dict[str, Any]:
    """Return what `cliff.py` measures with 16 and 1,000 users; on ONNX Runtime too where there is a graph."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "cliff.jsonl"
        words = [sys.executable, str(Path(__file__).with_name("cliff.py")), "--servers", "llama"]
        words += ["onnx"] if graph.exists() else []
        words += ["--users", "16", "1000", "--laws", "uniform", "--rounds", "1", "--requests", "16"]
        subprocess.run(
            [*words, "--json", study, "--llama", bundle, "--onnx", graph], check=True, stdout=sys.stderr
        )
        return {"crowds": crowds(bench.read_study(study))}


def ratios(times: dict[str, list[float]], over: dict[str, str]) -> dict[str, dict[str, float]]:
    """Summarize times, with the median of their ratios to another contestant's in the same round.

    `over` has that other contestant's name by the key of the ratio, in which {} is the contestant's own name.
    """
    found = {name: bench.summarize(values) for name, values in times.items()}
    for name, figures in found.items():
        for key, pattern in over.items():
            if (other := pattern.format(name)) in times and other != name:
                pairs = zip(times[name], times[other], strict=True)
                figures[key] = statistics.median(own / its for own, its in pairs)
    return found
