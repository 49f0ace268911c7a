"""Harnesses of what vouches for vectors and bundles: trust files, statements, the signature of a bundle.

Their signatures are mended with the harness's own keys, so that what is signed is read and judged, too.
"""

from __future__ import annotations

import base64
import json
from datetime import date
from random import Random
from typing import Any

import support
from harness import Harness
from mutations import as_json, changed

from tinylora_edge import Ed25519Signer, Ed25519Verifier, Hmac, TinyLoraError
from tinylora_edge.formats.statement import TYPE, Statement, opened
from tinylora_edge.trust import Envelope, ListedKey, Trust, editor
from tinylora_edge.wire import statements

DIGEST = support.random_basis(blocks=5, groups=13).digest
SECRET = bytes(range(32))
ROOTS = [Ed25519Signer(bytes([n]) * 32) for n in (1, 2)]
FLEET = Ed25519Signer(SECRET)
KEYS = [Hmac(SECRET), Ed25519Verifier(FLEET.public_key)]
DAY = date(2026, 3, 1)


def _chain() -> list[Trust]:
    one = editor.begin([ROOTS[0].public_key], 1, ROOTS[:1], DAY)
    key = ListedKey(FLEET.public_key, ("default", "eu-*"), first=DAY, last=date(2027, 3, 1))
    listed = editor.add(one, key, ROOTS[:1], DAY, date(2026, 12, 31))
    return [one, listed, editor.rotate(listed, [ROOTS[1].public_key], 1, ROOTS, DAY)]


CHAIN = _chain()


def _make_trust(random: Random) -> bytes:
    tree = json.loads(random.choice(CHAIN).to_bytes())
    if random.random() < 0.1:
        return as_json(tree)
    part = random.choice([tree["keys"], *tree["roots"]])
    if random.random() < 0.7:  # what is signed, in the one form that is taken
        payload = changed(json.loads(base64.b64decode(part["payload"])), random)
        part["payload"] = base64.b64encode(_canonical(payload)).decode()
        return _mend_trust(as_json(tree))
    return _mend_trust(as_json(changed(tree, random)))


def _canonical(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except (RecursionError, TypeError):
        return as_json(value)


def _mend_trust(data: bytes) -> bytes:
    """Sign every envelope with all roots, where the bytes still are such a file."""
    try:
        tree = json.loads(data)
        parts = [("keys", None), *(("roots", at) for at in range(len(tree["roots"])))]
        for name, at in parts:
            holder: Any = tree if at is None else tree[name]
            place: Any = name if at is None else at
            holder[place] = Envelope.from_json(holder[place]).signed(ROOTS).to_json()
    except (TinyLoraError, ValueError, TypeError, KeyError, RecursionError):
        return data
    return as_json(tree)


def _read_trust(data: bytes) -> None:
    trust = Trust.read(data)
    again = Trust.read(trust.to_bytes())
    assert (again.root, again.keys) == (trust.root, trust.keys)
    for day in (None, DAY, date(2030, 1, 1)):
        try:
            known = {key.id for key in trust.accepted("eu-7", day)}
        except TinyLoraError:
            continue  # the list is past its day
        assert known <= {Ed25519Verifier(key.key).id for key in trust.keys.keys}
        assert known.isdisjoint(key.id for key, _ in trust.refused("eu-7", day))
    CHAIN[0].updated(data)  # may be refused, as a rule of the tree's


def _make_statement(random: Random) -> bytes:
    signer = random.choice((Hmac(SECRET), FLEET))
    first, second = sorted(random.choice((0, 1, 300, 65535)) for _ in range(2))
    if random.random() < 0.3:
        return statements.encode_receipt(random.randrange(1 << 16), "ab" * 32, DIGEST, "", Hmac(SECRET))
    said = statements.Latest(random.randrange(1 << 16), first, second)
    return statements.encode_latest(said, DIGEST, random.choice(("", "", "alice")), signer)


def _read_statement(data: bytes) -> None:
    errors = []
    for decode in (statements.decode_latest, statements.decode_receipt):
        try:
            decode(data, DIGEST, "", KEYS)
        except TinyLoraError as error:
            errors.append(error)
    assert errors, "one statement is taken for two"
    if len(errors) > 1:
        raise errors[0]


_WHOLE = Statement("bundle", {"base.gguf": "ab" * 32, "basis.gguf": "cd" * 32, "onnx/model.onnx": "ef" * 32})


def _make_signature(random: Random) -> bytes:
    payload = _WHOLE.to_bytes()
    if random.random() < 0.7:
        payload = as_json(changed(json.loads(payload), random))
    value: Any = Envelope(TYPE, payload).signed([FLEET]).to_json()
    return as_json(value if random.random() < 0.6 else changed(value, random))


def _read_signature(data: bytes) -> None:
    envelope = opened(data)
    envelope.signers([Ed25519Verifier(FLEET.public_key)])
    found = Statement.from_bytes(envelope.payload)
    assert Statement.from_bytes(found.to_bytes()).files == found.files


HARNESSES = [
    Harness("trust", _make_trust, _read_trust, _mend_trust),
    Harness("statement", _make_statement, _read_statement),
    Harness("bundle_signature", _make_signature, _read_signature),
]
