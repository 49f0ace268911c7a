"""The blocks of the documents: each is a function that makes Markdown of the records."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Callable
from typing import Any

from _records import (
    ALL,
    DEVICE,
    LEARNED,
    PEOPLE_ARMS,
    RESULTS,
    SERVERS,
    TASKS,
    TEXTS_ARMS,
    TITLES,
    best_prompt,
    between,
    crowds,
    found_on_device,
    gains,
    messages,
    over_seeds,
    public,
    records,
    runs,
    titled,
    trained,
    ways,
)

WRONG = {
    **SERVERS,
    "stock": "llama-server, `cache_prompt` false",
    "stock-cached": "llama-server, `cache_prompt` true",
}
"""The servers of `wrong_user.py`."""
ROW_SERVERS = {**SERVERS, "llama": "ours, llama.cpp", "onnx": "ours, ONNX Runtime int8"}
"""The servers of `cliff.py` on the models in docs/MODELS.md."""


def number(value: float) -> str:
    """Return a number as the documents write it: two decimals, without a zero before the point."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]
    return "\n".join(lines)


def public_sets() -> str:
    """What each arm costs, and what it scores on SNIPS and CLINC150."""
    calls, intents, rows = public("snips"), public("clinc"), []
    for arm in sorted({*calls, *intents}, key=lambda arm: (rank_of(arm), arm)):
        mine = [*calls.get(arm, []), *intents.get(arm, [])]
        if arm.startswith("plain") and ", " in arm:
            continue  # plain steps in other numbers than the usual
        if "score" not in mine[0] or arm.endswith((", long steps", ", short steps")):
            continue  # a service of 2017, or steps that the trainer does not take
        size = max(row["bytes"] for row in mine)
        tokens = f"{mine[0]['prompt_tokens']}" if "prompt_tokens" in mine[0] else "0"
        cells = [over(calls.get(arm, []), "slot_f1"), over(calls.get(arm, []), "score")]
        cells.append(over(intents.get(arm, []), "in_scope"))
        rows.append([titled(arm), f"{size:,}" if size else "0", tokens, *cells])
    headers = ["", "bytes a user", "tokens a request", "SNIPS: slot F1", "SNIPS: right calls"]
    return markdown([*headers, "CLINC150: right intents"], rows)


def people() -> str:
    """What each arm brings on users' next messages, paired with the shared vector and the best prompt."""
    found, rows = messages(), []
    prompts = [found[arm] for arm in ("prompt-10", "prompt-40")]
    best = {user: min(each[user]["nats"] for each in prompts if user in each) for user in prompts[1]}
    for arm, name in PEOPLE_ARMS.items():
        own = found[arm]
        gained = gains(own)
        past = [row.get("int8", row)["nats"] < best[user] for user, row in own.items() if user in best]
        told = [row["auc"]["relative"] for row in own.values() if "auc" in row]
        row = [name, f"{max(each.get('bytes_int8', 0) for each in own.values()):,}"]
        row.append(f"{statistics.mean(gained):+.2f} ± {between(gained):.2f}")
        row.append(f"{sum(each > 0 for each in gained)} of {len(gained)}")
        row.append("" if arm.startswith("prompt") else f"{sum(past)} of {len(past)}")
        rows.append([*row, with_error(statistics.mean(told), between(told)) if len(told) > 1 else ""])
    headers = ["", "bytes a user", "nats a token better than shared", "users ahead of it"]
    return markdown([*headers, "of their best prompt", "AUC"], rows)


def texts() -> str:
    """What full steps bring on users' next messages, by messages and size, and their processor time."""
    rows, table = records("texts"), []
    shared = {(row["user"], row["seed"]): row["nats"] for row in rows if row["arm"] == "shared"}
    prompts = {
        arm: {row["user"]: row["nats"] for row in rows if row["arm"] == arm}
        for arm in ("prompt-25", "prompt-40")
    }
    for arm, name in TEXTS_ARMS.items():
        for n in sorted({row["n"] for row in rows if row["arm"] == arm}):
            own = [row for row in rows if (row["arm"], row["n"]) == (arm, n)]
            gained: dict[str, list[float]] = {}
            for row in own:
                gained.setdefault(row["user"], []).append(shared[row["user"], row["seed"]] - row["nats"])
            means, took = [statistics.mean(each) for each in gained.values()], [row["cpu_s"] for row in own]
            cells = [name, f"{n}", f"{len(gained)}", with_error(statistics.mean(means), between(means))]
            cells += [
                f"{sum(row['nats'] < each[row['user']] for row in own)} of {len(own)}"
                for each in prompts.values()
            ]
            table.append([*cells, f"{statistics.mean(took):.0f}, {max(took):.0f} at most"])
    for arm, found in prompts.items():
        means = [shared[user, 0] - nats for user, nats in found.items()]
        about = [f"{arm[-2:]} messages in the prompt", "", f"{len(means)}"]
        table.append([*about, with_error(statistics.mean(means), between(means)), "", "", ""])
    headers = [
        "",
        "messages",
        "users",
        "nats a token better than shared",
        "ahead of 25 in the prompt",
        "of 40",
    ]
    return markdown([*headers, "seconds of a core"], table)


def services() -> str:
    """What services of 2017 reached on SNIPS, as its repository records it."""
    found = {arm: rows[0]["slot_f1"] for arm, rows in public("snips").items() if "_metrics" in arm}
    small = sorted((arm for arm in found if arm.endswith("_metrics")), key=lambda arm: -found[arm])
    rows = [[titled(arm), number3(found[arm]), number3(found.get(f"{arm}_full"))] for arm in small]
    return markdown(["SNIPS, macro F1 of 53 slots", "70 utterances an intent", "about 2,000"], rows)


def number3(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".lstrip("0")


def rank_of(arm: str) -> tuple[int, int]:
    """Return the place of an arm in a table: base, prompts, vectors by size, LoRAs, classifiers, others."""
    order = ("base", "functions", "shots", "learned", "plain", "rank", "keep", "lora", "tf")
    kind, _, size = arm.partition(", ")[0].partition("-")
    numbers = math.prod(map(int, re.findall(r"\d+", size)))
    return order.index(kind) if kind in order else len(order), numbers


def paired(own: list[float], base: list[float]) -> tuple[float, float]:
    """Return the mean of differences between scores of the same samples, and its standard error."""
    gaps = [a - b for a, b in zip(own, base, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5


def gsm8k() -> str:
    """The share of GSM8K's test problems that are right, each vector paired with the base."""

    def arm(row: dict[str, Any]) -> str:
        return " ".join(filter(None, (row["arm"], row.get("method"))))

    rows, order = [], list(GSM8K_ARMS)
    found = sorted(records("gsm8k"), key=lambda row: order.index(arm(row)))
    base = next(row["scores"] for row in found if row["arm"] == "base")
    for row in found:
        change = with_error(*paired(row["scores"], base))
        mean = statistics.mean(row["scores"])
        steps = max((each.get("step", 0) for each in row.get("curve", ())), default=0)
        name = GSM8K_ARMS[arm(row)].format(steps, row.get("seed"))
        cells = [name, f"{row.get('bytes', 0):,}", f"{row['n']}"]
        cells += [
            with_error(mean, (mean * (1 - mean) / row["n"]) ** 0.5),
            change if row["arm"] != "base" else "",
        ]
        rows.append(cells)
    return markdown(["", "bytes", "problems", "right", "to the base"], rows)


GSM8K_ARMS = {
    "base": "base",
    "examples": "best worked examples",
    "rank-8 sft": "10,752 numbers, 40 steps of SFT",
    "rank-8 grpo": "10,752 numbers, {} steps of GRPO, seed {}",
    "numbers-13 grpo": "13 numbers, {} steps of GRPO, seed {}",
    "snips-rank-64x8-q4-240-s0.bin": "SNIPS calls, 86,016 numbers in 4 bits, 240 steps, without `--keep`",
}


def over(rows: list[dict[str, Any]], key: str) -> str:
    """Return the mean over seeds, with the larger of two standard errors: over samples, and over seeds."""
    if not rows:
        return ""
    mean, between_seeds = statistics.mean(row[key] for row in rows), between([row[key] for row in rows])
    if key == "slot_f1":  # a mean over slots, not over samples
        return with_error(mean, between_seeds) if between_seeds else number(mean)
    n = rows[0]["n"] // 11 * 9 if key == "in_scope" else rows[0]["n"]  # 1,000 of 5,500 are out of scope
    return with_error(mean, max(between_seeds, (mean * (1 - mean) / n) ** 0.5))


def scores() -> str:
    """The scores of the base, of the best prompt, and of 13 numbers in each basis, by task."""
    rows = []
    for task, title in trained().items():
        found = ways(task)
        base = statistics.mean(row["base"] for mine in found.values() for row in mine)
        found[ALL], (best, few) = runs(ALL, task), best_prompt(task)
        rows.append(
            [
                title,
                number(base),
                with_error(best["mean"], best["standard_error"]) + few if best else "not searched",
                *(with_error(*over_seeds(mine, "vector")) if mine else "" for mine in found.values()),
                ", ".join(str(len(mine)) for mine in found.values()),
            ]
        )
    headers = ["task", "base", "best prompt", *(f"13 numbers, {title}" for title in TITLES.values())]
    return markdown([*headers, "840 numbers", "seeds"], rows)


def device() -> str:
    """The gains of what a device finds without gradients, and of training in the shipped directions."""
    rows = []
    for task, title in trained().items():
        cells = [found_on_device(task, way) for way in DEVICE]
        if any(cells):
            host = [row["difference"] for row in runs(LEARNED, task)]
            rows.append([title, *map(over_runs, (host, *cells))])
    return markdown(["gain (seeds or users)", "GRPO on a host, learned, as shipped", *DEVICE.values()], rows)


def over_runs(gained: list[float]) -> str:
    """Return the mean of gains, its standard error, and their number."""
    if not gained:
        return ""
    return f"{statistics.mean(gained):+.3f} ± {between(gained):.3f} ({len(gained)})"


def users(rows: list[dict[str, Any]] | None = None) -> str:
    """What more users cost a server, 16 requests at a time."""
    cells = list[list[str]]()
    for server, counts in crowds(rows).items():
        for count, laws in sorted(counts.items()):
            if count == 100:
                continue  # the figure has this number
            row = [SERVERS[server], f"{count:,}"]
            for law in ("uniform", "zipf"):
                each = laws.get(law)
                row += (
                    [f"{each['rate']:.0f}", f"{each['share']:.0%}".replace("%", " %")] if each else ["", ""]
                )
            first = laws["uniform" if "uniform" in laws else "zipf"]
            row.append(
                f"{first['p50']:.0f}, {first['p95']:.0f}" + (" (Zipf)" if "uniform" not in laws else "")
            )
            cells.append([*row, f"{max(each['peak'] for each in laws.values()) / 1e6:,.0f}"])
    headers = ["server", "users", "tokens/s, uniform", "to 16 users", "tokens/s, Zipf", "to 16 users"]
    headers += ["first token, ms: p50, p95", "peak memory, MB"]
    return markdown(headers, cells)


def rows() -> str:
    """The rates of servers of three models with 1 to 64 requests at a time, and with many users."""
    turns, cells = records("rows"), list[list[str]]()
    models = list(dict.fromkeys(turn["model"] for turn in turns))
    arms = dict.fromkeys((turn["at_once"], turn["server"], turn["users"]) for turn in turns)
    for at_once, server, users in sorted(
        arms, key=lambda arm: (arm[0], arm[2] > 64, arm[2], arm[1] == "base")
    ):
        row = [str(at_once), ROW_SERVERS[server] + (f", {users:,} users" if users > 64 else "")]
        for model in models:
            mine = [t for t in turns if (t["model"], t["at_once"], t["users"]) == (model, at_once, users)]
            found = crowds(mine).get(server)
            row.append("")
            if found:
                each = found[users]["uniform"]
                row[-1] = f"{each['rate']:.0f}, {each['p95'] / 1000:.1f} s, {each['peak'] / 1e6:,.0f} MB"
        cells.append(row)
    return markdown(["requests at a time", "server", *models], cells)


def crowd() -> str:
    """The lines of the README on many users."""
    found = crowds()
    ours, stock = found.get("onnx", {}), found.get("stock", {})
    if not {16, 10_000} <= ours.keys():
        return "Not measured."
    shares = [f"{ours[10_000][law]['share']:.0%}".replace("%", " %") for law in ("uniform", "zipf")]
    late = [f"{ours[users]['uniform']['p95'] / 1000:.2f} s" for users in (10_000, 16)]
    text = (
        "- **10,000 users cost what 16 do.** On ONNX Runtime 10,000 users with a vector each have "
        f"{shares[0]} of the throughput of 16 users ({shares[1]} after Zipf), and 95 % of "
        f"first tokens come within {late[0]} (16 users: {late[1]}): nothing is loaded."
    )
    if {1, 16} <= stock.keys():
        one, most = stock[1]["zipf"], max(stock)
        last = stock[most]["zipf"]
        text += (
            f" llama-server with a LoRA each falls from {one['rate']:.0f} tokens a second for one user to "
            f"{last['rate']:.0f} for {most}, and 95 % of first tokens come within {last['p95'] / 1000:.0f} s."
        )
    return "\n".join(textwrap.wrap(text, 118, break_on_hyphens=False, subsequent_indent="  "))


def wrong_users(rows: list[dict[str, Any]] | None = None) -> str:
    """Whose answers users got when all asked at the same time."""
    kinds = ("own", "another's", "nobody's, begins as his own", "nobody's")
    found = records("wrong_user") if rows is None else rows
    cells = [
        [
            WRONG.get(row["server"], row["server"]),
            f"{row['users']}",
            *(f"{row['counts'].get(each, 0)}" for each in kinds),
        ]
        for row in found
    ]
    headers = ["their own", "another's", "nobody's, begins as their own", "nobody's"]
    return markdown(["server", "users", *headers], cells)


def requantized() -> str:
    """What a vector gains at run time, and merged into the model in each form, on the same prompts."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in records("requantized"):
        found.setdefault((row["task"], row["numbers"]), {})[row["form"]] = row
    sizes = {form: row["bytes"] for forms in found.values() for form, row in forms.items()}
    cells = []
    for (task, numbers), forms in found.items():
        one = next(iter(forms.values()))
        name = f"{TASKS.get(task, 'SNIPS')}, {numbers:,} numbers"
        rows = [forms.get(form) for form in sizes]
        gained = [f"{row['difference']:+.2f} ± {row['standard_error']:.2f}" if row else "" for row in rows]
        cells.append([name, f"{one['n']}", number(one["base"]), *gained])
    headers = [f"{form}, {size / 1e6:.0f} MB" for form, size in sizes.items()]
    return markdown(["vector", "prompts", "base", *headers], cells)


def installs() -> str:
    """What an install on an ARM64 device takes, with each engine, and what an import costs."""
    record = json.loads((RESULTS / "arm.json").read_text("utf-8"))
    parts = {row["part"]: row for row in record["sizes"]}
    rows = [*parts.items()]
    for engine, other in (("llama.cpp", "onnxruntime"), ("ONNX Runtime", "llama")):
        mine = [row for part, row in parts.items() if other not in part]
        total = {key: sum(row[key] for row in mine) for key in ("wheel", "installed")}
        rows.append((f"**with {engine}, in all**", total))
    cells = [[part, *(f"{row[key] / 1e6:.1f}" for key in ("wheel", "installed"))] for part, row in rows]
    table, cost = markdown(["part", "wheels, MB", "unpacked, MB"], cells), record["imports"]
    return (
        f"{table}\n\n`import tinylora_edge.runtime` takes {cost['seconds'] / cost['of numpy']:.1f} times as "
        "long as `import numpy`,\nwhich is in it, and "
        f"loads {cost['modules beyond numpy']} modules more, {cost['ours']} of them ours."
    )


FLEETS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LEARNING_S = 12  # seconds of a core to learn the 100 messages of a user (docs/MANY_USERS.md)
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


def fleet() -> str:
    """What the vectors of a fleet cost: the record's figures a user, times the users."""
    most: dict[str, float] = {}
    for row in json.loads((RESULTS / "fleet.json").read_text("utf-8"))["rows"]:
        most[row["size"]] = max(row["disk"], most.get(row["size"], 0.0))

    def of_bytes(value: float) -> str:
        unit = next(unit for unit in UNITS if value < 1e3 * UNITS[unit] or unit == "TB")
        return f"{value / UNITS[unit]:.3g} {unit}"

    rows = []
    for users in FLEETS:
        disk = [of_bytes(users * each) for each in most.values()]
        rows.append([f"{users:,}", *disk, f"{users * LEARNING_S / 3600:,.0f}"])
    return markdown(["users", *most, "hours of a core to learn the largest"], rows)


def model_costs() -> str:
    """What it costs to personalize each model, a column each; a cell is empty where it was not measured."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in records("models"):
        found.setdefault(row["model"], {})[row["what"]] = row["found"]
    names = sorted(found, key=lambda name: found[name]["export"]["model_bytes"])
    rows = []
    for title, cell in MODEL_ROWS.items():
        cells = [cell_of(found[name], cell) for name in names]
        if any(cells):
            rows.append([title, *cells])
    return markdown(["", *names], rows)


def cell_of(found: dict[str, dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """Return the text of a cell, empty where a part of its record is missing."""
    try:
        return cell(found)
    except KeyError:
        return ""


def exported(words: str) -> Callable[[dict[str, Any]], str]:
    def cell(found: dict[str, Any]) -> str:
        own, plain = found["export"][words]["cpu_s"], found["export"]["plain pass"]["cpu_s"]
        return f"{own:.0f} s, {own / plain:.0f} times"

    return cell


def ratio(what: str, part: str, name: str, key: str) -> Callable[[dict[str, Any]], str]:
    """Return the cell that has the milliseconds of a contestant, and their ratio to another one's."""

    def cell(found: dict[str, Any]) -> str:
        times = found[what][part][name] if part else found[what][name]
        return f"{1000 * times['median']:.1f} ms" + (f", {times[key]:.2f} times" if key in times else "")

    return cell


def node_share(found: dict[str, Any]) -> str:
    """Return what a LoRA of rank 0 would add to a token, and what each rank adds, by ranks 1 and 64."""
    times = found["token"]["token"]
    ranks = {rank: times[f"stock, rank {rank}"]["over_base"] - 1 for rank in (1, 64)}
    slope = (ranks[64] - ranks[1]) / 63
    return f"{100 * (ranks[1] - slope):+.1f} % and {100 * slope:+.2f} % a rank"


def stepped(method: str) -> Callable[[dict[str, Any]], str]:
    def cell(found: dict[str, Any]) -> str:
        one = found["training"][method]
        cell = f"{one['step_s']:.1f} s, {one['peak_bytes'] / 1e6:,.0f} MB"
        return cell if method == "sft" else f"{cell}, {100 * one['signal']:.0f} %"

    return cell


TALL = "rank 64x8"
MODEL_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "GGUF": lambda found: f"{found['export']['model_bytes'] / 1e6:,.0f} MB",
    "**export**, rank 8, over a plain pass of the bytes": exported("--rank 8"),
    "64 outputs": exported("--outputs 64"),
    "their peak memory": lambda found: ", ".join(
        f"{found['export'][words]['peak_bytes'] / 1e6:,.0f} MB" for words in ("--rank 8", "--outputs 64")
    ),
    "basis.gguf": lambda found: ", ".join(
        f"{found['export'][words]['basis_bytes'] / 1e6:.1f} MB" for words in ("--rank 8", "--outputs 64")
    ),
    "worst residual": lambda found: f"{found['export']['--outputs 64']['residual']:.1e}",
    "**ONNX**, int8: export": lambda found: (
        f"{found['onnx']['cpu_s']:.0f} s" if "cpu_s" in found["onnx"] else "refused by the builder"
    ),
    "its peak memory, without mapped files": lambda found: (
        f"{found['onnx']['anonymous_bytes'] / 1e6:,.0f} MB"
    ),
    "bytes": lambda found: f"{found['onnx']['bytes'] / 1e6:,.0f} MB",
    "KL from the GGUF, nats a token": lambda found: f"{found['likeness']['kl']:.4f}",
    "answers that begin alike": lambda found: "{begin_alike} of {prompts}".format(**found["likeness"]),
    "**load** of a bundle, over a plain `Llama`": ratio("load", "", "runtime.load", "over_stock"),
    "**swap** of 13 numbers, over `llama_adapter_lora_init` of rank 2": ratio(
        "swap", "", "13 numbers", "over_stock"
    ),
    "of 64 x 8, over rank 8": ratio("swap", "", TALL, "over_stock"),
    "**token** of the base, llama.cpp": ratio("token", "token", "base", ""),
    "with 13 numbers, rank 2, over the base": ratio("token", "token", "13 numbers", "over_base"),
    "with 64 x 8": ratio("token", "token", TALL, "over_base"),
    "with a stock LoRA of rank 8": ratio("token", "token", f"stock, {TALL}", "over_base"),
    "what a side path costs by being there, and by its rank": node_share,
    "two threads: the base": ratio("token, 2 threads", "token", "base", ""),
    "two threads: with 64 x 8": ratio("token, 2 threads", "token", TALL, "over_base"),
    "**token** of the base graph, ONNX Runtime": ratio("onnx token", "token", "base", ""),
    "with up to rank 8": ratio("onnx token", "token", "rank 8", "over_base"),
    "with 64 x 8, in a graph of 64 outputs": ratio("onnx token", "token", TALL, "over_base"),
    "a step of 16 rows, a vector each: base graph": ratio("onnx token, 16 rows", "token", "base", ""),
    "16 rows, 64 x 8": ratio("onnx token, 16 rows", "token", TALL, "over_base"),
    "two threads: the base graph": ratio("onnx token, 2 threads", "token", "base", ""),
    "with 64 x 8, two threads": ratio("onnx token, 2 threads", "token", TALL, "over_base"),
    "**training**, 64 x 8: a step of SFT, 8 calls": stepped("sft"),
    "a step of GRPO, 8 answers each to 8 lists, and how many of these differed": stepped("grpo"),
}
"""The rows of `model_costs`: title -> a cell of a model's records, which are by what was measured."""


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block
    for block in (
        public_sets,
        gsm8k,
        people,
        texts,
        services,
        scores,
        device,
        users,
        rows,
        crowd,
        wrong_users,
        requantized,
        installs,
        fleet,
        model_costs,
    )
}
