"""`inspect`: what a bundle, a basis or a vector is, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import Basis, BasisError, Bundle, Ed25519Verifier, load_basis
from ..formats.signatures import Signature, check_bundle, signature_path
from ..projection import EXPLICIT
from ..shipping import layout
from . import console, keyfiles, vectors
from .export import sources
from .options import JsonOption, KeysOption, StreamOption


def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A bundle, a basis.gguf, or a vector; - is stdin."),
    ],
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="What a vector is for: to check it as a device.")
    ] = None,
    keys: KeysOption = None,
    stream: StreamOption = layout.DEFAULT_STREAM,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle, a basis or a vector is, and check it.

    Of a bundle: that the basis gives the digest that it states, and that the base is one that it was
    exported for; with --key, that its files are those that were signed. Of a vector, with BUNDLE: all that a
    device checks, and its values.

    \b
    Examples:
      tinylora-edge inspect out/demo
      tinylora-edge inspect v1.bin out/demo --key fleet.key.pub
    """
    if str(path) != vectors.STREAM and not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a bundle, a basis, a model or a vector")
    if path.is_dir() or _is_gguf(path):
        if bundle is not None:
            raise typer.BadParameter("only a vector is checked against a bundle", param_hint="BUNDLE")
        with console.progress(f"checking {path}"):
            record = _model(path, keyfiles.public_keys(keys))
        rows = _model_rows(record)
    else:
        if bundle is None and (keys or stream != layout.DEFAULT_STREAM):
            raise typer.BadParameter("a vector is checked with its bundle: name it", param_hint="BUNDLE")
        record = _vector(vectors.read(str(path)), bundle, keys, stream)
        rows = _vector_rows(record)
    if as_json:
        console.print_json(record)
        return
    console.facts(rows)
    if record["kind"] == "vector" and bundle is None:
        console.next_command("inspect", path, "BUNDLE")


def _vector(data: bytes, bundle: Path | None, keys: list[Path] | None, stream: str) -> dict[str, Any]:
    """Return what a vector is: what its header says, and with the bundle what was verified."""
    record: dict[str, Any] = {"kind": "vector", "verified": bundle is not None}
    if bundle is None:
        return record | vectors.header(data)
    basis = vectors.find_basis(bundle)
    vector = keyfiles.policy(keys).check(data, basis, stream=layout.bound_name(stream))
    return (
        record
        | vectors.header(data)
        | {
            "key": vector.verified_by,
            "dtype": vector.dtype,
            "basis_id": basis.id,
            "basis_digest": basis.digest,
            "groups": basis.groups,
            "u": basis.u,
            "count": basis.size,
            "norm": vector.norm,
            "values": vector.values.tolist(),
        }
    )


def _vector_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    verified = record["verified"]
    rows = {"form": f"{record['form']}, {record['bytes']} bytes"}
    if record["form"] == "raw":
        rows["tag"] = "none: a raw payload has no tag, basis or sequence"
    else:
        under = f" under {record['key']}" if record.get("key") else ""
        rows["version"] = str(record["version"])
        rows["tag"] = f"{record['tag']}, {f'verified{under}' if verified else 'not checked'}"
        rows["sequence"] = str(record["sequence"])
        if "until" in record:
            rows["until"] = f"{record['until']}, the last day on which it may be accepted"
    if verified:
        rows["basis"] = record["basis_digest"]
        rows["values"] = f"{record['count']} {record['dtype']} ({record['groups']} groups x u {record['u']})"
        rows["norm"] = f"{record['norm']:.6g}"
        rows |= {f"group {g}": "  ".join(f"{x: .6g}" for x in row) for g, row in enumerate(record["values"])}
    elif record["form"] == "raw":
        rows["values"] = " or ".join(f"{count} {dtype}" for dtype, count in record["values_if"].items())
    else:
        rows["basis"] = f"{record['basis_id']}..."
        or_else = f" or {record['count_or']}" if "count_or" in record else ""
        rows["values"] = f"{record['count']}{or_else} {record['dtype']}"
    return list(rows.items())


def _model(path: Path, keys: list[Ed25519Verifier]) -> dict[str, Any]:
    """Return what a basis or a bundle is, once it is known to be sound."""
    if path.is_file() and (path.name.endswith("basis.gguf") or vectors.is_basis(path)):
        if keys:
            raise typer.BadParameter("a basis alone is not signed: name the bundle", param_hint="--key")
        return {"kind": "basis", "path": str(path)} | _basis_facts(load_basis(path), path)
    bundle = Bundle.find(path)
    signature = signature_path(bundle)
    signed: dict[str, Any] | None = None
    if keys:
        count = len(check_bundle(bundle, keys))
        signed = {"key": Signature.read(signature).key, "verified": True, "files": count}
    elif signature.exists():
        signed = {"key": Signature.read(signature).key, "verified": False}
    record = {"kind": "bundle", "path": str(path)} | _basis_facts(bundle.basis, bundle.basis_path)
    files = list(bundle.base.iterdir()) if bundle.base.is_dir() else [bundle.base]
    record["base"] = {
        "path": str(bundle.base),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "fingerprint": bundle.check_base(),
    }
    if bundle.onnx is not None and bundle.onnx != bundle.base:
        record["onnx"] = {"path": str(bundle.onnx), "fingerprint": bundle.check_onnx()}
    stated = bundle.manifest.get("basis")
    digest = stated.get("digest") if isinstance(stated, dict) else None
    if digest is not None and digest != bundle.basis.digest:
        raise BasisError(
            f"{bundle.manifest_path} states digest {str(digest)[:16]}..., but {bundle.basis_path} has "
            f"{bundle.basis.digest[:16]}...: they come from different exports. Export the bundle again"
        )
    return record | {"manifest": bundle.manifest, "signature": signed}


def _basis_facts(basis: Basis, path: Path) -> dict[str, Any]:
    return {
        "basis": {"path": str(path), "bytes": path.stat().st_size},
        "digest": basis.digest,
        "architecture": basis.architecture,
        "modules": len(basis.modules),
        "kinds": list(basis.kinds()),
        "rank": basis.rank,
        "u": basis.u,
        "groups": basis.groups,
        "values": basis.size,
        "tying": basis.scheme,
        "seed": basis.seed,
        "projection": basis.projection,
        "prior": basis.prior is not None,
        "factorization": basis.factorization,
        "factor_dtype": {4: "f32", 2: "f16"}[basis.a[0].itemsize],
        "base_fingerprints": list(basis.base_fingerprints),
        "vector_bytes": vectors.sizes(basis.size),
    }


def _model_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    origin = "stored in the basis" if record["projection"] == EXPLICIT else f"seed {record['seed']}"
    shape = f"{record['groups']} groups x u {record['u']}, tying {record['tying']}"
    rows = [
        (record["kind"], record["path"]),
        ("digest", f"{record['digest']} (verified)"),
        ("architecture", record["architecture"]),
        ("modules", f"{record['modules']} ({', '.join(record['kinds'])})"),
        ("factors", f"rank {record['rank']}, {record['factorization']}, {record['factor_dtype']}"),
        ("projection", f"{record['projection']}, {origin}"),
        ("vector", f"{record['values']} values: {shape}"),
        ("prior", "mean and covariance" if record["prior"] else "none"),
        ("basis", f"{record['basis']['path']}, {console.megabytes(record['basis']['bytes'])}"),
    ]
    if record["kind"] == "bundle":
        base, manifest, signature = record["base"], record["manifest"], record["signature"]
        rows.append(("base", f"{base['path']}, {console.megabytes(base['bytes'])}"))
        rows.append(("fingerprint", f"{base['fingerprint']} (listed in the basis)"))
        if signature is not None:
            state = (
                f"{signature['files']} files verified" if signature["verified"] else "not checked: --key FILE"
            )
            rows.append(("signature", f"by {signature['key']} ({state})"))
        exported = manifest.get("base")
        if isinstance(exported, dict) and "name" in exported:
            rows.append(("exported from", str(exported["name"])))
        rows += sources(manifest.get("source"))
        if "tool" in manifest:
            rows.append(("exported by", str(manifest["tool"])))
    rows.append(("bases listed", str(len(record["base_fingerprints"]))))
    for dtype, forms in record["vector_bytes"].items():
        rows.append((f"{dtype} on the wire", ", ".join(f"{size} {form}" for form, size in forms.items())))
    return rows


def _is_gguf(path: Path) -> bool:
    # A damaged basis is still to be told from a vector, hence the name.
    if path.name.endswith(".gguf"):
        return True
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
