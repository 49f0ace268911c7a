"""`examples/browser` in Chromium: its reader on golden values, graphs in WebAssembly, its page on SmolLM2."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_bundles
import onnx_models
import pytest
import servers
import support
from browsing.browser import WIDTHS, opened, overflow, pale
from tokenizers import Tokenizer

from tinylora_edge import Bases, MicroVector, Projection, load_bundle, runtime
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.projection import entries_descriptor
from tinylora_edge.runtime import OnnxSession

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
KEY = bytes(range(32)).hex()
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
QUESTION, MOST = "Name a colour.", 6
MILLISECONDS = 300_000  # a browser on a machine that does much else

READ = """async jobs => {
  const { readBasis, readFrame } = await import("/tinylora.mjs");
  const bytes = digits => digits && Uint8Array.from(digits.match(/../g), pair => parseInt(pair, 16));
  const hex = data => Array.from(new Uint8Array(data.buffer), b => b.toString(16).padStart(2, "0")).join("");
  const read = async ({ file, descriptor, digest, frame, hmac, ed25519, ...options }) => {
    const { modules, outputs, rank } = options;
    const basis = file
      ? await readBasis(new Uint8Array(await (await fetch(file, { cache: "no-store" })).arrayBuffer()))
      : { rank, outputs, rows: Array(modules).fill(outputs),
          modules: Array.from({ length: modules }, (_, i) => `blk.${i}.attn_q.weight`),
          bases: new Map([[digest.slice(0, 8), { descriptor, digest: bytes(digest) }]]) };
    if (!frame) return { factors: basis.factors, ids: [...basis.bases.keys()] };
    const keys = { hmac: bytes(hmac), ed25519: bytes(ed25519) };
    const { r, values, ...found } = await readFrame(bytes(frame), basis, { ...keys, ...options });
    return { ...found, r: hex(r), values: hex(values) };
  };
  const found = [];
  for (const job of jobs) {
    found.push(await read(job).catch(error => {
      if (error.constructor !== Error) throw error;
      return { refused: error.message };
    }));
  }
  return found;
}"""

RUN = """async ({ folder, feeds, adapter }) => {
  const ort = await import("/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
  const made = { float32: x => Float32Array.from(x), int64: x => BigInt64Array.from(x, BigInt) };
  const bytes = async name => new Uint8Array(await (await fetch(folder + name)).arrayBuffer());
  const externalData = [{ path: "model.onnx.data", data: await bytes("model.onnx.data") }];
  const session = await ort.InferenceSession.create(await bytes("model.onnx"), { externalData });
  const given = feeds.map(([name, type, dims, data]) => [name, new ort.Tensor(type, made[type](data), dims)]);
  const options = adapter ? { activeLoraAdapters: [await bytes(adapter)] } : {};
  try {
    const { logits } = await session.run(Object.fromEntries(given), ["logits"], options);
    return { dims: logits.dims, data: Array.from(logits.data) };
  } catch (error) {
    return String(error.message);
  }
}"""


@dataclass(frozen=True)
class Site:
    address: str
    folder: Path

    def page(self, bundle: str, most: int = MOST) -> str:
        text = (EXAMPLE / "index.html").read_text("utf-8")
        for old, new in (('BUNDLE = "bundle/"', f'BUNDLE = "{bundle}/"'), ("MOST = 48", f"MOST = {most}")):
            assert text.count(old) == 1
            text = text.replace(old, new)
        (self.folder / f"{bundle}.html").write_text(text, "utf-8")
        return f"{self.address}{bundle}.html"


class Handler(SimpleHTTPRequestHandler):
    """What `python -m http.server` runs, without its log."""

    def log_message(self, *arguments: object) -> None:
        pass


def node_modules() -> Path:
    """The packages of the example, brought into this environment once."""
    wanted = hashlib.sha256((EXAMPLE / "package.json").read_bytes()).hexdigest()
    home = Path(sys.prefix) / f"node-{wanted[:16]}"
    if not home.exists():
        if (npm := shutil.which("npm")) is None:
            pytest.skip("npm is not installed")
        with tempfile.TemporaryDirectory(prefix="node-", dir=sys.prefix) as work:
            shutil.copy(EXAMPLE / "package.json", work)
            # Nothing that a package would run is run: what is needed are files.
            options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
            command = [npm, "install", *options]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:  # as on a machine without a network: what is tested is not npm
                pytest.skip(f"npm cannot bring the packages: {done.stderr[-300:]}")
            shutil.copytree(work, home)
    return home / "node_modules"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of the example's folder, as its README starts it."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copy(EXAMPLE / "tinylora.mjs", folder)
    (folder / "node_modules").symlink_to(node_modules())
    (folder / "empty.html").write_text('<link rel="icon" href="data:,">')
    with servers.running(partial(Handler, directory=str(folder))) as server:
        yield Site(f"http://127.0.0.1:{server.server_port}/", folder)


@pytest.fixture(scope="module")
def empty(chromium: Browser, site: Site) -> Iterator[Page]:
    """A page without anything, from which modules can be loaded."""
    with opened(chromium, f"{site.address}empty.html") as page:
        yield page


def test_golden_frames(empty: Page) -> None:
    entries = support.golden_frames()
    jobs = []
    for entry in entries:
        job = {name: entry[name] for name in ("rank", "outputs", "modules")}
        job |= {
            "user": entry["stream"],
            "frame": entry["frame_hex"],
            "digest": entry["digest_hex"],
            "today": entry["last_day"] or 0,
        }
        job["descriptor"] = entries_descriptor((entry["outputs"], entry["rank"]))
        key = {"crc32": {}, "hmac": {"hmac": entry["key_hex"] or KEY}, "ed25519": {"ed25519": PUBLIC}}
        own = job | key[entry["auth"]]
        jobs += [own, own | {"user": "bob"}, own | {"today": 1 << 16}]
        jobs.append(own | {"last": {"sequence": 7, "content": "of another"}})
        signed = len(own) > len(job)
        jobs.append(job | ({"hmac": None, "ed25519": None} if signed else {"ed25519": PUBLIC}))
    found = iter(empty.evaluate(READ, jobs))
    for entry in entries:
        own, other, late, again, without = (next(found) for _ in range(5))
        values = np.frombuffer(bytes.fromhex(entry["values_hex_le_f32"]), "<f4")
        vector = MicroVector(values, entry["dtype"], entry["sequence"], entries=support.entries(entry))
        assert own == {
            "dtype": entry["dtype"],
            "tag": {"crc32": "CRC-32", "hmac": "HMAC", "ed25519": "Ed25519"}[entry["auth"]],
            "sequence": 7,
            "content": own["content"],
            "until": entry["last_day"],
            "descriptor": entries_descriptor((entry["outputs"], entry["rank"])),
            "values": vector.values.tobytes().hex(),
            "r": vector.values.tobytes().hex(),
        }
        assert "user" in other["refused"]
        assert late == (own if entry["last_day"] is None else {"refused": "its last day is over"})
        taken = {"refused": "another one with sequence 7 was taken"}
        assert again == (own if entry["auth"] == "crc32" else taken)
        assert "key" in without["refused"]


def read_back(empty: Page, site: Site, bases: Bases, frames: list[bytes]) -> list[dict[str, Any]]:
    save_bases(bases, site.folder / "read.gguf")
    jobs = [{"file": "read.gguf"}, *({"file": "read.gguf", "frame": frame.hex()} for frame in frames)]
    found: list[dict[str, Any]] = empty.evaluate(READ, jobs)
    return found


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_golden_bases(empty: Page, site: Site, number: int) -> None:
    bases, golden = support.golden_models()[number]
    frames = [support.golden_frame(entry) for entry in golden["bases"]]
    about, *found = read_back(empty, site, bases, frames)
    assert about == {"factors": golden["factors"], "ids": list(bases)}
    for entry, found_one in zip(golden["bases"], found, strict=True):
        assert found_one["descriptor"] == entry["descriptor"]
        if bases[entry["digest"][:8]].shape == bases.factors.shape:  # else R is padded
            support.assert_golden(entry, "r", bytes.fromhex(found_one["r"]))


def test_tensors_over_each_other(empty: Page, site: Site) -> None:
    files = support.golden_overlaps()
    for number, each in enumerate(files):
        (site.folder / f"overlaps-{number}.gguf").write_bytes(bytes.fromhex(each["file_hex"]))
    found = empty.evaluate(READ, [{"file": f"overlaps-{number}.gguf"} for number in range(len(files))])
    for each, found_one in zip(files, found, strict=True):
        refused = {"refused": "basis.gguf: tensors over the same bytes"}
        assert found_one == refused if not each["accepted"] else found_one["factors"] == each["factors"]


@pytest.mark.parametrize(
    "fields", [{"rank": 8, "factor_dtype": np.float16}, {"experts": 3}, {"rank": 1, "outputs": 3}], ids=str
)
def test_r_is_pythons_bit_for_bit(empty: Page, site: Site, fields: dict[str, Any]) -> None:
    factors = support.random_factors(**fields)
    named = Projection.random(factors.modules, 4, 1)
    bases = Bases(factors, (support.learned(factors, 5), named))
    vectors = [(basis, MicroVector.random(basis, 0.5, seed=1)) for basis in map(bases.__getitem__, bases)]
    far, other = bases.basis(rank=1), support.random_basis(rng=9)
    beyond = [MicroVector.random(far, 257.0).to_bytes(far), MicroVector.zeros(other).to_bytes(other)]
    _, *found, large, strange = read_back(empty, site, bases, [*(v.to_bytes(b) for b, v in vectors), *beyond])
    for (basis, vector), found_one in zip(vectors, found, strict=True):
        assert found_one["r"] == onnx_models.row(basis, vector).tobytes().hex()
    assert "its numbers are too large" in large["refused"]
    assert strange["refused"] == f"it is for basis {other.id}, which is none of this model's"


def test_the_largest_vector(empty: Page) -> None:
    """64 x 8 of the 882 modules of the largest dense models is read; more than 500,000 numbers are not."""
    job = {"frame": "20" + "00" * 8, "digest": "00" * 32, "descriptor": "entries out=64 in=8"}
    found = empty.evaluate(READ, [job | {"modules": m, "rank": 8, "outputs": 64} for m in (882, 977)])
    assert ["cut" in found[0]["refused"], "too large" in found[1]["refused"]] == [True, True]


def test_forged_projections(empty: Page, site: Site) -> None:
    for name, descriptors in support.FORGED.items():
        support.save_forged(descriptors, site.folder / f"{name}.gguf")
    found = empty.evaluate(READ, [{"file": f"{name}.gguf"} for name in support.FORGED])
    assert [name for name, each in zip(support.FORGED, found, strict=True) if "refused" not in each] == []


def test_a_file_that_is_cut(empty: Page, site: Site) -> None:
    save_bases(support.golden_models()[0][0], site.folder / "whole.gguf")
    data = (site.folder / "whole.gguf").read_bytes()
    sizes = range(0, len(data), max(1, len(data) // 50))
    for size in sizes:
        (site.folder / f"cut-{size}.gguf").write_bytes(data[:size])
    found = empty.evaluate(READ, [{"file": f"cut-{size}.gguf"} for size in sizes])
    assert all("basis.gguf" in found_one["refused"] for found_one in found), found


def in_wasm(
    empty: Page, site: Site, bundle: Path, feeds: dict[str, Any], adapter: str | None = None
) -> np.ndarray[Any, Any] | str:
    """A graph's logits in onnxruntime-web, or the message of its error."""
    link = site.folder / bundle.name
    if not link.is_symlink():
        link.symlink_to(bundle)
    feeds_of = [(name, str(x.dtype), list(x.shape), x.reshape(-1).tolist()) for name, x in feeds.items()]
    job = {"folder": f"/{link.name}/onnx/", "feeds": feeds_of, "adapter": adapter}
    found = empty.evaluate(RUN, job)
    return found if isinstance(found, str) else np.array(found["data"], np.float32).reshape(found["dims"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_logits_in_webassembly_are_pythons(empty: Page, site: Site, precision: str) -> None:
    bundle = onnx_bundles.tiny("required", precision=precision)
    session = OnnxSession(bundle)
    users = onnx_bundles.vectors(bundle, 2)
    effects, differences = [], []
    for rows in (session.rows(None), session.rows([users[0], None, users[1]])):
        feeds = onnx_models.feeds(session.session, [onnx_models.TOKENS] * len(rows))
        expected = session.run(["logits"], feeds, rows)[0]
        found = in_wasm(empty, site, bundle, {**feeds, "tinylora_r": rows})
        differences.append(np.abs(found - expected).max())
        effects.append(np.abs(expected - session.run(["logits"], feeds)[0]).max())
    assert effects[0] == 0
    # Kernels of quantized weights round activations, each in its own way: there, no vector may add to what
    # the base alone differs by.
    bound = 1e-4 if precision == "fp32" else 3 * differences[0]
    assert max(differences) <= bound < effects[1]


def test_a_vector_that_is_left_out_or_too_wide_is_an_error(empty: Page, site: Site) -> None:
    """On the graph with default zeros `activeLoraAdapters` is ignored silently; here it cannot be."""
    bundle = onnx_bundles.tiny("required")
    session = OnnxSession(bundle)
    feeds = onnx_models.feeds(session.session, [onnx_models.TOKENS])
    wide = {**feeds, "tinylora_r": np.zeros((1, session.rows(None).size + 1), np.float32)}
    for feeds_of, adapter in ((feeds, None), (feeds, "zeros.onnx_adapter"), (wide, None)):
        assert "tinylora_r" in in_wasm(empty, site, bundle, feeds_of, adapter)


@pytest.mark.parametrize(
    ("flavour", "basis_of", "why"),
    [("default", "default", "--onnx-input required"), ("required", "other", "are of different exports")],
)
def test_bundles_that_the_page_refuses(chromium, site, flavour, basis_of, why):
    bundle = site.folder / f"refused-{flavour}"
    bundle.mkdir()
    (bundle / "onnx").symlink_to(onnx_bundles.tiny(flavour) / "onnx")
    other = onnx_bundles.tiny(flavour) if basis_of == flavour else onnx_bundles.tiny(rank=3)
    (bundle / "basis.gguf").symlink_to(other / "basis.gguf")
    with opened(chromium, site.page(bundle.name), expected="Initializer tinylora_r") as page:
        page.wait_for_function(f"document.getElementById('model').textContent.includes('{why}')")


def take(page: Page, site: Site, frame: bytes) -> str:
    """Have the page fetch a frame; return what it says of it."""
    (site.folder / "v.bin").write_bytes(frame)
    page.fill("#address", "v.bin")
    page.evaluate("document.getElementById('vector').textContent = ''")
    page.click("#take button")
    page.wait_for_function("document.getElementById('vector').textContent", timeout=MILLISECONDS)
    return page.locator("#vector").inner_text()


def test_its_answers_are_pythons_token_for_token(chromium: Browser, site: Site) -> None:
    """SmolLM2, in float32: without the vector, and with one that came before others that are refused."""
    bundle = onnx_bundles.real()
    of = load_bundle(bundle).basis(rank=8)
    vector = replace(MicroVector.random(of, 6.0, seed=1), dtype="int8", sequence=5)
    frame = vector.to_bytes(of, until=date(2100, 1, 1))
    shutil.copytree(bundle, site.folder / "real", copy_function=lambda a, b: Path(b).symlink_to(a))
    graph = onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)
    (zeros,) = (tensor for tensor in graph.graph.initializer if tensor.name == "tinylora_r")
    graph.graph.initializer.remove(zeros)  # what `--onnx-input required` leaves out
    (site.folder / "real" / "onnx" / "model.onnx").unlink()
    onnx.save(graph, site.folder / "real" / "onnx" / "model.onnx")

    with opened(chromium, site.page("real")) as page:
        page.wait_for_selector("#ask button:enabled", timeout=MILLISECONDS)
        assert "13440 numbers, entries, int8, CRC-32, sequence 5" in take(page, site, frame)
        assert "its checksum is wrong" in take(page, site, frame[:20] + b"\0\0\0" + frame[23:])
        older = replace(vector, sequence=4).to_bytes(of)
        assert "its sequence is 4, older than 5" in take(page, site, older)
        page.fill("#question", QUESTION)
        page.click("#ask button")
        page.wait_for_selector("#ask button:enabled", timeout=MILLISECONDS)
        found = [page.get_attribute(f"#{name}", "data-tokens") or "" for name in ("base", "personal")]
        displayed = page.locator("#base").text_content()
        for width, height in WIDTHS.values():
            page.set_viewport_size({"width": width, "height": height})
            assert overflow(page) == 0
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert pale(page) == {}

    llm: Any = runtime.load(bundle, engine="onnx", n_ctx=128)
    prompt = llm.encode(QUESTION)[0]
    base, personal = (list(map(int, tokens.split(","))) for tokens in found)
    assert base == list(llm.generate(prompt, max_tokens=MOST))
    llm.swap(frame)
    assert personal == list(llm.generate(prompt, max_tokens=MOST)) != base
    llm.close()
    assert displayed == Tokenizer.from_file(str(bundle / "onnx" / "tokenizer.json")).decode(base)
