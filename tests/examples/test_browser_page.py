"""The page of `examples/browser` in Chromium: its answers are Python's; what is refused changes nothing."""

from __future__ import annotations

import hashlib
import math
import re
import select
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsing.browser import opened, overflow, pale
from browsing.packages import FOLDER, node_modules
from onnx_bundles import tiny
from tokenizers import Tokenizer

from tinylora_edge import Ed25519Signer, MicroVector, load_basis, runtime
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
    bundle = tiny("required")
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


def text(site: Site, tokens: list[int]) -> str:
    """What tokens say, by the library that the page's is a translation of."""
    tokenizer = Tokenizer.from_file(str(site.bundle / "onnx" / "tokenizer.json"))
    said: str = tokenizer.decode(tokens)
    return said


def test_its_answers_are_pythons_token_for_token(page: Page, site: Site) -> None:
    """Between the two likeliest tokens lies .03 at least, and both engines agree within 1e-4."""
    basis = load_basis(site.bundle / "basis.gguf")
    vectors = [MicroVector.random(basis, 4.0, seed=0), MicroVector.random(basis, 1.0, seed=1)]
    base, short, long = pythons(site, [None, *vectors])
    assert len(short) < len(long) == len(base) == MOST  # one ends by itself, beside one that goes on
    assert len({tuple(base), tuple(short), tuple(long)}) == 3
    assert asked(page) == [base, []]
    assert page.locator("#before").text_content() == text(site, base)
    for number, (vector, tokens) in enumerate(zip(vectors, (short, long), strict=True)):
        for dtype in ("fp32", "int8") if number else ("fp32",):
            sent = MicroVector(vector.values, dtype, number)
            until = date(2100, 1, 1) if dtype == "int8" else None  # a frame of version 3
            take(page, site.put("v.bin", sent.to_bytes(basis, until=until, version=None if number else 1)))
            assert not page.locator("#refused").is_visible()
            assert f"{dtype}, CRC-32" in page.locator("#vector").inner_text()
            assert page.locator("#bars span").count() == basis.size
            assert asked(page) == [base, tokens if dtype == "fp32" else pythons(site, [sent])[0]]
    page.click("#clear")
    assert asked(page) == [base, []]


def test_what_is_refused_changes_nothing(page: Page, site: Site) -> None:
    basis = load_basis(site.bundle / "basis.gguf")
    vector = MicroVector.random(basis, 1.0, seed=2)
    frame = MicroVector(vector.values, "fp32", 5).to_bytes(basis)
    take(page, site.put("v.bin", frame))
    before = asked(page)
    assert before[0] != before[1]

    damaged = bytearray(frame)
    damaged[12] ^= 4
    assert "its checksum is wrong" in refused(page, site.put("v.bin", bytes(damaged)))
    other = load_basis(tiny("default", "dense") / "basis.gguf")
    for_other = refused(page, site.put("v.bin", MicroVector.random(other, 1.0).to_bytes(other)))
    assert f"it is for basis {other.digest[:8]}, and the model has basis {basis.digest[:8]}" in for_other
    older = MicroVector(vector.values * 2, "fp32", 4).to_bytes(basis)
    assert "its sequence is 4, older than 5" in refused(page, site.put("v.bin", older))
    assert "it was cut, or is no frame" in refused(page, site.put("v.bin", frame[:-2]))
    over = MicroVector(vector.values, "fp32", 6).to_bytes(basis, until=date(2026, 1, 1))
    assert "its last day is over" in refused(page, site.put("v.bin", over))
    body = bytearray(MicroVector(vector.values, "fp32", 6).to_bytes(basis)[:-4])
    body[7:11] = struct.pack("<f", math.nan)
    bound = hashlib.sha256(b"tinylora stream 2\n").digest()
    tag = zlib.crc32(bound + bytes.fromhex(basis.digest) + body).to_bytes(4, "little")
    assert "a value that is not finite" in refused(page, site.put("v.bin", bytes(body) + tag))
    assert "The model is as it was." in page.locator("#refused").inner_text()
    assert "sequence 5" in page.locator("#vector").inner_text()
    assert asked(page) == before


def test_a_signature_is_demanded_where_there_is_a_key(page: Page, site: Site) -> None:
    basis = load_basis(site.bundle / "basis.gguf")
    signer = Ed25519Signer(bytes(range(32)))
    vector = MicroVector.random(basis, 1.0, seed=2)
    page.click("summary")
    page.fill("#stream", "alice")
    page.fill("#key", tags.public_pem(signer.public_key))
    unsigned = vector.to_bytes(basis, stream="alice")
    assert "it is not signed, and a key is set" in refused(page, site.put("v.bin", unsigned))
    signed = vector.to_bytes(basis, signer, stream="bob")
    assert "its signature is not one of this key" in refused(page, site.put("v.bin", signed))
    take(page, site.put("v.bin", vector.to_bytes(basis, signer, stream="alice")))
    assert "Ed25519" in page.locator("#vector").inner_text()
    page.fill("#key", "abc")
    assert "the key has not 32 bytes" in refused(page, "/frames/v.bin")


@pytest.mark.parametrize(("screen", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_it_fits_and_can_be_read(chromium: Browser, site: Site, screen: str, scheme: str) -> None:
    basis = load_basis(site.bundle / "basis.gguf")
    site.put("shown.bin", MicroVector.random(basis, 1.0, seed=2).to_bytes(basis))
    address = f"{site.address}?frame=/frames/shown.bin"
    with opened(chromium, address, screen=screen, scheme=scheme) as shown:
        shown.wait_for_selector("#bars span", timeout=MILLISECONDS)
        assert re.search(r"basis [0-9a-f]{8}, 5 values", shown.locator("#model").inner_text())
        shown.click("summary")
        shown.evaluate("document.getElementById('refused').hidden = false")
        shown.evaluate("document.getElementById('refused').textContent = 'Refused: ' + 'x'.repeat(200)")
        assert overflow(shown) == 0
        assert pale(shown) == {}
