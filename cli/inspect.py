"""`inspect`: what a bundle, a basis or a vector is, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter

from tinylora_edge import Ed25519Verifier, load_bundle
from tinylora_edge.formats.gguf import gguf_paths
from tinylora_edge.formats.side_tensors import load_bases
from tinylora_edge.formats.signatures import Signature, check_bundle, signature_path
from tinylora_edge.shipping.links import LINKS
from tinylora_edge.wire.frame import DEFAULT_USER, bound_name
from tinylora_edge.writes import open_file

from . import console, keyfiles, vectors
from . import options as opts

_VALUES = 64  # most values that are shown without --json


def inspect(
    path: Annotated[Path, Argument(metavar="PATH", help="A bundle, a basis.gguf, or a vector; - is stdin.")],
    bundle: Annotated[Path | None, Argument(metavar="BUNDLE", help="The bundle of a vector.")] = None,
    keys: opts.KeysOption = None,
    user: opts.UserOption = DEFAULT_USER,
    as_json: opts.JsonOption = False,
) -> None:
    """Show what a bundle, a basis or a vector is, and check it.

    For a bundle, inspect checks that the factors have the digest that the file states, and that they were
    exported for the base; with --key, it also checks that the files are the signed ones.

    For a vector, it shows the header, and how many messages of each link the vector takes. With BUNDLE, it
    also makes all checks that a device makes, and shows the projection and the values.

    \b
    Examples:
      tinylora-edge inspect out/demo
      tinylora-edge inspect v1.bin out/demo --key fleet.key.pub
    """
    if path.is_dir() or _is_model(path):
        if bundle is not None:
            raise BadParameter("only a vector is checked against a bundle", param_hint="BUNDLE")
        with console.progress(f"checking {path}"):
            record = _model(path, keyfiles.public_keys(keys))
    else:
        if bundle is None and (keys or user != DEFAULT_USER):
            raise BadParameter("checking a vector needs its bundle: name it", param_hint="BUNDLE")
        record = _vector(vectors.read(str(path)), bundle, keys, user)
    readable = dict(record)
    if len(record.get("values", [])) > _VALUES:
        readable["values"] = "see --json"
    if "messages" in record:
        single = [link for link, count in record["messages"].items() if count == 1]
        readable["messages"] = "one on " + "; ".join(single) if single else "several on every link"
    console.report(record, as_json, rows=console.flat(readable))
    if record["kind"] == "vector" and bundle is None and not as_json:
        console.next_command("inspect", path, "BUNDLE")


def _vector(data: bytes, bundle: Path | None, keys: list[Path] | None, user: str) -> dict[str, Any]:
    checked = dict[str, Any]()
    if bundle is not None:
        bases = vectors.find_bases(bundle)
        vector = keyfiles.policy(keys).check(data, bases, user=bound_name(user))
        basis = bases.of(vector)
        checked = {"key": vector.verified_by, "basis": basis.digest, "factors": basis.factors.digest}
        checked |= {"projection": basis.projection.descriptor, "count": basis.size, "rank": basis.rank}
        checked |= {"outputs": basis.shape[0], "norm": vector.norm, "norm_of_r": basis.norm(vector)}
        checked["values"] = vector.values.tolist()
    record = {"kind": "vector", "verified": bundle is not None, **vectors.header(data), **checked}
    return record | {"messages": {link: -(-len(data) // size) for link, size in LINKS.items()}}


def _model(path: Path, keys: list[Ed25519Verifier]) -> dict[str, Any]:
    if vectors.is_basis(path):
        if keys:
            raise BadParameter("a basis alone has no signature: name the bundle", param_hint="--key")
        return {"kind": "basis", "path": str(path)} | vectors.factors_facts(load_bases(path))
    bundle = load_bundle(path)
    signature = signature_path(bundle)
    signed: dict[str, Any] | None = None
    if keys:
        count = len(check_bundle(bundle, keys))
        signed = {"key": Signature.read(signature).key, "verified": True, "files": count}
    elif signature.exists():
        signed = {"key": Signature.read(signature).key, "verified": False}
    record = {"kind": "bundle", "path": str(path)} | vectors.factors_facts(bundle.bases)
    files = list(bundle.base.iterdir()) if bundle.base.is_dir() else gguf_paths(bundle.base)
    record["base"] = {
        "path": str(bundle.base),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "fingerprint": bundle.check_base(),
    }
    if bundle.onnx is not None and bundle.onnx != bundle.base:
        record["onnx"] = {"path": str(bundle.onnx), "fingerprint": bundle.check_onnx()}
    return record | {"manifest": bundle.manifest, "signature": signed}


def _is_model(path: Path) -> bool:
    if (named := path.name.endswith((".gguf", ".onnx"))) or not path.is_file():  # even if it is damaged
        return named
    with open_file(path) as file:
        return file.read(4) == b"GGUF"
