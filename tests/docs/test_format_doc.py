"""Every test value on docs/FORMAT.md, taken from the page itself and compared with the code."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import support

from tinylora_edge import Bases, Basis, Factors, MicroVector, Policy, Projection
from tinylora_edge.errors import TransferError
from tinylora_edge.formats import gguf as _gguf
from tinylora_edge.formats import side_tensors, signatures
from tinylora_edge.modules import KINDS
from tinylora_edge.projection import project
from tinylora_edge.shipping.fetch import LATEST, frame_path
from tinylora_edge.wire import frame as _frame
from tinylora_edge.wire import tags
from tinylora_edge.wire import text as _text
from tinylora_edge.wire import values as _values
from tinylora_edge.wire.frame import DEFAULT_USER, FIRST_DAY, LAST_DAY

PAGE = Path(__file__).parents[2] / "docs" / "FORMAT.md"
MODULE = "blk.0.attn_q.weight"
ARCHITECTURE = "llama"


def section(title: str) -> str:
    """The text under a heading, up to the next heading of the same or a higher level."""
    text = PAGE.read_text("utf-8")
    marks, start = re.search(rf"^(#+) {re.escape(title)}\n", text, re.M).group(1), text.index(f"# {title}\n")
    end = re.search(rf"^#{{1,{len(marks)}}} ", text[start + 2 :], re.M)
    return text[start : start + 2 + end.start()] if end else text[start:]


def rows(title: str, columns: int) -> list[list[str]]:
    """The rows of a section's tables that have so many columns, without headings and backquotes."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    body = [row for row, then in zip(cells, [*cells[1:], [""]], strict=True) if not then[0].startswith("---")]
    return [row for row in body if len(row) == columns and not row[0].startswith("---")]


def values_of(title: str) -> dict[str, str]:
    return dict(map(tuple, rows(title, 2)))  # type: ignore[arg-type]


def frame_digest() -> str:
    return re.search(r"`([0-9a-f]{64})`", section("A frame taken apart")).group(1)


def test_projection_values() -> None:
    found = rows("Random projections", 5)
    assert len(found) == 3
    for seed, module, u, rank, expected in found:
        assert project(int(seed), module, int(u), int(rank)).astype("<f4").tobytes().hex() == expected


def test_sums() -> None:
    ((v, p, expected),) = rows("Learned projections", 3)
    values, flat = (np.frombuffer(bytes.fromhex(text), "<f4") for text in (v, p))
    found = Projection.learned([MODULE], flat.reshape(3, 1, 2, 2)).R(values)
    assert found.astype("<f4").tobytes().hex() == expected


def test_descriptors() -> None:
    forms = re.findall(r"^    ((?:entries|learned|random) .*?)(?:  +.*)?$", section("Projections"), re.M)
    made = (
        Projection.entries([MODULE], 1),
        Projection.entries([MODULE], (2, 1)),
        Projection.learned([MODULE], np.ones((1, 1, 1, 1))),
        Projection.random([MODULE], 1, rank=1),
    )
    for form, projection in zip(forms, made, strict=True):
        pattern = re.sub(r"<[^>]+>", "[0-9a-z]+", form)
        assert re.fullmatch(pattern, projection.descriptor), form
    text = " ".join(section("Projections").split())
    (default,) = re.findall(r"The \*default\* random projections are `([^`]+)`", text)
    modules = [f"blk.{block}.attn_q.weight" for block in range(5)]
    assert Projection.random(modules, 5).descriptor == default.replace("<n>", "5")


def test_order_of_kinds() -> None:
    text = section("Modules and groups")
    assert [name for name in re.findall(r"`(\w+)`", text) if name.startswith(("attn", "ffn"))] == list(KINDS)


def test_keys_and_tensors_of_side_tensors(tmp_path: Path) -> None:
    factors = support.random_factors(1, kinds=("attn_q",), outputs=4)
    bases = Bases(factors, (support.learned(factors, 3),), ("00",))
    side_tensors.save_bases(bases, tmp_path / "basis.gguf")
    reader = gguf.GGUFReader(tmp_path / "basis.gguf")
    kinds = {"U32": "UINT32", "STRING": "STRING", "ARRAY OF STRINGS": "ARRAY STRING"}
    documented = {key: kinds[kind.replace("`", "").upper()] for key, kind, _ in rows("Keys", 3)}
    found = {
        field.name: " ".join(kind.name for kind in field.types)
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }
    assert found == documented
    names = [re.split("[`,]", name)[0] for name, *_ in rows("Tensors", 3)]
    named = [name.replace("<m>", MODULE).replace("<i>", "0") for name in names]
    assert [tensor.name for tensor in reader.tensors] == named
    *_, mean, covariance = reader.tensors
    np.testing.assert_array_equal(mean.data, bases.projections[0].prior.mean)
    np.testing.assert_array_equal(covariance.data, bases.projections[0].prior.covariance)


def test_digests() -> None:
    a, b = np.array([[1, 0]], np.float32), np.array([[2], [-1], [0.5]], np.float32)
    example = Factors(architecture=ARCHITECTURE, modules=(MODULE,), rank=1, a=(a,), b=(b,))
    page = values_of("Digests")
    module = hashlib.sha256(bytes.fromhex(page["of the module"]))
    whole = hashlib.sha256(bytes.fromhex(page["before the modules"]) + module.digest())
    assert module.hexdigest() == page["its SHA-256"]
    assert whole.hexdigest() == page["factors' digest"] == example.digest
    descriptors = [text for text in page if " rank=" in text]
    assert [text.split()[0] for text in descriptors] == ["entries", "random", "learned"]
    p = np.array([0.5, -2]).reshape(2, 1, 1, 1)
    made = (
        Projection.entries(example.modules, 1),
        Projection.random(example.modules, 1, rank=1),
        Projection.learned(example.modules, p),
    )
    for text, projection in zip(descriptors, made, strict=True):
        hashed = hashlib.sha256(b"tinylora basis 2\n" + whole.digest() + text.encode()).hexdigest()
        assert projection.descriptor == text
        assert hashed == page[text] == Basis(example, projection).digest
    sizes = re.findall(r'the (\d+) bytes "(tinylora \w+ 2)" LF', section("Digests"))
    assert [int(size) for size, _ in sizes] == [len(word) + 1 for _, word in sizes] == [19, 17]


def test_fingerprint() -> None:
    page = values_of("Fingerprint")
    image = io.BytesIO()
    weight = np.array([[2, 0], [-1, 0], [0.5, 0]], np.float32)
    _gguf.write(image, ARCHITECTURE, [], {MODULE: weight})
    found = side_tensors.fingerprint(_gguf.GGUFFile(image.getvalue()), [MODULE])
    assert hashlib.sha256(bytes.fromhex(page["hashed"])).hexdigest() == page["fingerprint"] == found


def test_table_of_types() -> None:
    found = set()
    for values, kinds in rows("Fingerprint", 2):
        for number, name, size in re.findall(r"(\d+) ([A-Z]\w+) (\d+)", kinds):
            kind = gguf.GGMLQuantizationType[name]
            assert (int(kind), gguf.GGML_QUANT_SIZES[kind]) == (int(number), (int(values), int(size)))
            found.add(name)
    assert found >= {"F32", "Q4_1", "Q4_K", "BF16"}


def test_frame_taken_apart() -> None:
    parts, frame = rows("A frame taken apart", 3), taken_apart()
    assert frame.hex() in {entry["frame_hex"] for entry in support.golden_frames()}
    position = 0
    for place, part, _ in parts:
        first, _, last = place.partition("-")
        assert (int(first), int(last or first)) == (position, position + len(part) // 2 - 1)
        position += len(part) // 2
    meanings = " ".join(meaning for *_, meaning in parts)
    decoded = _frame.decode(frame, 13, frame_digest())
    for bits, value in re.findall(r"0x([0-9A-F]{4}) = (-?[\d.]+\d|0)", meanings):
        assert _values.decode_values(bytes.fromhex(bits)[::-1], "bf16", 1) == [np.float32(value)]
        assert np.float32(value) in decoded.values
    checksum = int(re.search(r"0x([0-9A-F]{8})", meanings).group(1), 16)
    assert checksum == int.from_bytes(decoded.tag, "little")


def test_test_frames() -> None:
    text = section("Test frames")
    hmac_key, private_key, public_key = map(bytes.fromhex, re.findall(r"`([0-9a-f]{64})`", text))
    signer = tags.Ed25519Signer(private_key)
    assert signer.public_key == public_key
    keys = [tags.Hmac(hmac_key), tags.Ed25519Verifier(signer.public_key)]
    signers = {"CRC-32": tags.Crc32(), "HMAC": tags.Hmac(hmac_key), "Ed25519": signer}
    values = np.arange(-6, 7, dtype=np.float32) / np.float32(100)
    factors = support.random_factors(13, kinds=("attn_q",))
    basis = support.with_digest(Bases(factors).basis(rank=1), frame_digest())  # it is known by that alone
    later = rows("Test frames", 6)
    assert {(each[0], each[2]) for each in later} >= {("2", "bf16"), ("2", "int8"), ("3", "int8")}
    for version, name, dtype, tag, size, text in later:
        frame, stream = bytes.fromhex(text), "" if name == "without a name" else name
        vector = MicroVector(values, dtype, 7, basis.digest)
        until = LAST_DAY if version == "3" else None
        assert len(frame) == int(size)
        assert vector.to_bytes(basis, signers[tag], user=stream, until=until) == frame
        policy = Policy(keys=() if tag == "CRC-32" else keys)
        assert policy.check(frame, basis, user=stream) == vector
    assert f"65535, which is {LAST_DAY}" in section("Test frames")


def test_bits_a_number() -> None:
    ((dtype, values, frame),) = rows("Bits a number", 3)
    (entry,) = (entry for entry in support.golden_frames() if entry["frame_hex"] == frame)
    assert (entry["dtype"], entry["values_hex_le_f32"], support.entries(entry)) == (dtype, values, (5, 2, 2))


def test_frames_are_bound() -> None:
    text = section("Frames")
    ((size, word),) = re.findall(r'(\d+) bytes "(tinylora stream \d)" LF', text)
    assert len(word) + 1 == int(size)
    bound = hashlib.sha256(f"{word}\n".encode()).digest()
    assert f"`{bound.hex()}`" in section("A frame taken apart")
    decoded = _frame.decode(taken_apart(), 13, frame_digest())
    digest = bytes.fromhex(frame_digest())
    assert _frame.message("", digest, decoded.body) == bound + digest + decoded.body


def taken_apart() -> bytes:
    return bytes.fromhex("".join(part for _, part, _ in rows("A frame taken apart", 3)))


def test_texts() -> None:
    page = values_of("Text and QR codes")
    written = {
        "base64url": _text.encode(taken_apart()),
        "base64url with the scheme": _text.encode(taken_apart(), scheme=True),
        "hexadecimal": taken_apart().hex(),
    }
    assert page == written
    for text in page.values():
        assert _text.is_text(text.encode())
        assert _text.decode(text) == taken_apart()


def test_published_path() -> None:
    text = " ".join(section("Published vectors").split())
    basis, sequence = frame_digest()[:8], int.from_bytes(taken_apart()[5:7], "little")
    assert f"`{frame_path(basis, DEFAULT_USER, sequence)}`" in text
    assert f"<user>/{LATEST} " in text
    (longest,) = re.findall(r"1 to (\d+) characters", text)
    frame_path(basis, "a" * int(longest))
    with pytest.raises(TransferError):
        frame_path(basis, "a" * (int(longest) + 1))


def test_key_ids() -> None:
    text = section("Frames").replace("\n", " ")
    ((size, message),) = re.findall(r"of the (\d+) bytes `([^`]+)`", text)
    assert len(message) == int(size)
    key = bytes(range(32))
    assert tags.Hmac(key).id == f"hmac:{hmac.digest(key, message.encode(), 'sha256')[:8].hex()}"
    public = tags.Ed25519Signer(key).public_key
    assert tags.Ed25519Verifier(public).id == f"ed25519:{hashlib.sha256(public).digest()[:8].hex()}"


def test_what_is_signed_for_a_bundle() -> None:
    text = section("Signed bundles")
    expected = f"tinylora bundle 1\n{'0' * 64}  a\n{'1' * 64}  b\n"
    assert signatures.signed_text({"b": "1" * 64, "a": "0" * 64}) == expected.encode()
    assert "\n    tinylora bundle 1\n" in text
    assert f"`{signatures.SIGNATURE_NAME}`" in text


def test_a_state_file(tmp_path: Path) -> None:
    text = section("State files")
    version = int(re.search(r'^    {"format": (\d), "sha256"', text, re.M).group(1))
    basis, key = support.random_basis(), tags.Hmac(bytes(32))
    policy = Policy(keys=[key], state=tmp_path / "state", today=FIRST_DAY)
    vector = MicroVector([0.5, -1], "int8", 7)
    with policy.admit(vector.to_bytes(basis, key, user="alice", until=LAST_DAY), basis, user="alice"):
        pass
    found = json.loads((tmp_path / "state").read_bytes())
    hashed = f"{basis.digest}\nint8\n".encode() + vector.values.astype("<f4").tobytes()
    content = hashlib.sha256(hashed).hexdigest()[:32]
    body = f'{{"{basis.factors.digest}":{{"{key.id}":{{"alice":"7:{content}"}}}}}}'
    checksum = hashlib.sha256(body.encode()).hexdigest()
    assert found == {"format": version, "sha256": checksum, "accepted": json.loads(body)}
