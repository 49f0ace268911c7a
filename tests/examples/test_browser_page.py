"""The page of `examples/browser` in Chromium: its answers are Python's; what is refused changes nothing."""

from __future__ import annotations

import math
import re
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import support
from browsing.browser import opened, overflow, pale
from browsing.packages import FOLDER, node_modules
from onnx_bundles import basis, tiny
from tokenizers import Tokenizer

from tinylora_edge import Ed25519Signer, MicroVector, load_bundle, runtime
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.wire import tags

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUESTION = "Hello"
MOST = 24
MILLISECONDS = 120_000  # a browser on a machine that does much else


@dataclass(frozen=True)
class Site:
    """What a server gives out."""

    address: str
    bundle: Path
    files: Path

    def put(self, name: str, data: bytes) -> str:
        """Put a frame onto it, and return its address there."""
        (self.files / name).write_bytes(data)
        return f"/frames/{name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example's own server, on a tiny model, with a folder of frames."""
    folder = tmp_path_factory.mktemp("browser") / "page"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (folder / "node_modules").symlink_to(node_modules())
    (folder / "frames").mkdir()
    bundle = Path(shutil.copytree(tiny("required"), folder.parent / "bundle"))
    bases = load_bundle(tiny("required")).bases
    (bundle / "basis.gguf").unlink()  # a link, perhaps
    save_bases(bases.with_projection(support.learned(bases.factors)), bundle / "basis.gguf")
    command = [sys.executable, str(folder / "serve.py"), str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert select.select([server.stdout], [], [], 60)[0], "the server says nothing"
            address = server.stdout.readline().partition("?")[0]
            assert address.startswith("http://127.0.0.1:"), address
            yield Site(address, bundle, folder / "frames")
        finally:
            server.terminate()


@pytest.fixture
def page(chromium: Browser, site: Site) -> Iterator[Page]:
    """The page with its model loaded."""
    with opened(chromium, site.address) as shown:
        shown.wait_for_selector("#go:enabled", timeout=MILLISECONDS)
        yield shown


def take(page: Page, address: str) -> None:
    """Have the page fetch a frame, and wait until it says what became of it."""
    before = page.locator("#vector").text_content()
    page.fill("#address", address)
    page.evaluate("document.getElementById('refused').hidden = true")
    page.click("#fetch button")
    page.wait_for_function(
        """before => !document.getElementById("refused").hidden
            || document.getElementById("vector").textContent !== before""",
        arg=before,
        timeout=MILLISECONDS,
    )


def refused(page: Page, address: str) -> str:
    """Why the page refuses a frame."""
    take(page, address)
    return page.locator("#refused").inner_text()


def asked(page: Page, question: str = QUESTION) -> list[list[int]]:
    """The tokens of both answers."""
    page.fill("#question", question)
    page.fill("#most", str(MOST))
    page.click("#go")
    page.wait_for_selector("#go:enabled", timeout=MILLISECONDS)
    found = [page.get_attribute(f"#{name}", "data-tokens") or "" for name in ("before", "after")]
    return [[int(token) for token in tokens.split()] for tokens in found]


def pythons(site: Site, vectors: list[MicroVector | None]) -> list[list[int]]:
    """The tokens that the runtime generates."""
    llm: Any = runtime.load(site.bundle, engine="onnx", n_ctx=128)
    prompt = llm.tokenize(llm.apply_chat_template([{"role": "user", "content": QUESTION}]))
    found = []
    for vector in vectors:
        llm.clear() if vector is None else llm.swap(vector)
        found.append(list(llm.generate(prompt, max_tokens=MOST)))
    llm.close()
    return found


def test_its_answers_are_pythons_token_for_token(page: Page, site: Site) -> None:
    """Between the two likeliest tokens lies .03 at least, and both engines agree within 1e-4."""
    bases = load_bundle(site.bundle).bases
    short = MicroVector.random(bases.basis(numbers=5), 4.0, seed=0)
    long = replace(MicroVector.random(bases.basis(rank=8), 4.0, seed=1), dtype="int8", sequence=2)
    learned = replace(MicroVector.random(bases.basis(numbers=13), 1.0, seed=2), sequence=3)
    vectors = [short, long, learned]
    base, *answers = pythons(site, [None, *vectors])
    assert len(answers[0]) < len(answers[1]) == len(base) == MOST  # one ends by itself, one goes on
    assert asked(page) == [base, []]
    tokenizer = Tokenizer.from_file(str(site.bundle / "onnx" / "tokenizer.json"))
    assert page.locator("#before").text_content() == tokenizer.decode(base)
    for vector, tokens in zip(vectors, answers, strict=True):
        until = date(2100, 1, 1) if vector.dtype == "int8" else None  # a frame of version 3
        of = bases.of(vector)
        take(page, site.put("v.bin", vector.to_bytes(of, until=until)))
        assert not page.locator("#refused").is_visible()
        assert f"{vector.dtype}, CRC-32" in page.locator("#vector").inner_text()
        assert f"{of.size} numbers ({of.projection.kind})" in page.locator("#vector").inner_text()
        assert page.locator("#bars span").count() == min(of.size, 60)
        assert asked(page) == [base, tokens]
    page.click("#clear")
    assert asked(page) == [base, []]


def test_what_is_refused_changes_nothing(page: Page, site: Site) -> None:
    of = basis(site.bundle)
    other = basis(tiny(rank=3))
    grown = load_bundle(site.bundle).basis(rank=2)
    vector = MicroVector.random(of, 1.0, seed=2)
    frame = replace(vector, sequence=5).to_bytes(of)
    take(page, site.put("v.bin", frame))
    before = asked(page)
    assert before[0] != before[1]
    nan = support.frame(of.digest, struct.pack("<5f", *[math.nan] * 5), sequence=6)
    over = replace(vector, sequence=6).to_bytes(of, until=date(2026, 1, 1))
    large = replace(vector, values=vector.values * 1e4, sequence=6).to_bytes(of)
    for data, why in (
        (frame[:12] + bytes([frame[12] ^ 4]) + frame[13:], "its checksum is wrong"),
        (
            MicroVector.random(other, 1.0).to_bytes(other),
            f"it is for basis {other.id}, which is none of this model's",
        ),
        (replace(vector, sequence=4).to_bytes(of), "its sequence is 4, older than 5"),
        (MicroVector.random(grown, 1.0).to_bytes(grown), "its sequence is 1, older than 5"),
        (large, "its numbers are too large"),
        (frame[:-2], "it was cut, or is no frame"),
        (over, "its last day is over"),
        (nan, "a value that is not finite"),
    ):
        said = refused(page, site.put("v.bin", data))
        assert why in said
        assert "The model is as it was." in said
    assert "sequence 5" in page.locator("#vector").inner_text()
    assert asked(page) == before


def test_a_signature_is_demanded_where_there_is_a_key(page: Page, site: Site) -> None:
    of = basis(site.bundle)
    signer = Ed25519Signer(bytes(range(32)))
    vector = MicroVector.random(of, 1.0, seed=2)
    page.click("summary")
    page.fill("#stream", "alice")
    page.fill("#key", tags.public_pem(signer.public_key))
    unsigned = vector.to_bytes(of, stream="alice")
    assert "it is not signed, and a key is set" in refused(page, site.put("v.bin", unsigned))
    signed = vector.to_bytes(of, signer, stream="bob")
    assert "its signature is not one of this key" in refused(page, site.put("v.bin", signed))
    take(page, site.put("v.bin", vector.to_bytes(of, signer, stream="alice")))
    assert "Ed25519" in page.locator("#vector").inner_text()
    page.fill("#key", "abc")
    assert "the key has not 32 bytes" in refused(page, "/frames/v.bin")


@pytest.mark.parametrize(("screen", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_it_fits_and_can_be_read(chromium: Browser, site: Site, screen: str, scheme: str) -> None:
    of = load_bundle(site.bundle).basis(rank=8)
    site.put("shown.bin", MicroVector.random(of, 1.0, seed=2).to_bytes(of))
    address = f"{site.address}?frame=/frames/shown.bin"
    with opened(chromium, address, screen=screen, scheme=scheme) as shown:
        shown.wait_for_selector("#bars span", timeout=MILLISECONDS)
        assert re.search(r"factors [0-9a-f]{8}", shown.locator("#model").inner_text())
        shown.click("summary")
        shown.evaluate("document.getElementById('refused').hidden = false")
        shown.evaluate("document.getElementById('refused').textContent = 'Refused: ' + 'x'.repeat(200)")
        assert overflow(shown) == 0
        assert pale(shown) == {}
