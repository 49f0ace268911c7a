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
        typer.Argument(
            metavar="PATH",
            help="A bundle, a basis.gguf, a model with its basis beside it, or a vector; - is stdin.",
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="What a vector is for: to check it as a device.")
    ] = None,
    keys: KeysOption = None,
    stream: StreamOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle, a basis or a vector is, and check it.

    Of a bundle: that the basis gives the digest that it states, and that the base is one that it was
    exported for; with --key, that its files are those that were signed. Of a vector, with BUNDLE: all that a
    device checks, and its values; where it is refused, the exit code is 1.

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
        _inspect_model(path, keyfiles.public_keys(keys), as_json)
        return
    if bundle is None and (keys or stream):
        raise typer.BadParameter("a vector is checked with its bundle: name it", param_hint="BUNDLE")
    _inspect_vector(str(path), bundle, keys, stream, as_json)


def _inspect_vector(
    source: str, bundle: Path | None, keys: list[Path] | None, stream: str, as_json: bool
) -> None:
    data = vectors.read(source)
    record: dict[str, Any] = {"kind": "vector", "verified": bundle is not None}
    if bundle is not None:
        basis = vectors.find_basis(bundle)
        vector = keyfiles.policy(keys).check(data, basis, stream=layout.bound_name(stream))
        record |= vectors.header(data)
        record.pop("values_if", None)
        record.pop("count_or", None)
        record |= {
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
    else:
        record |= vectors.header(data)
    if as_json:
        console.print_json(record)
        return
    console.facts(list(_vector_rows(record).items()))
    if bundle is None:
        console.next_command("inspect", source, "BUNDLE")
    else:
        console.facts(
            [(f"group {g}", "  ".join(f"{x: .6g}" for x in row)) for g, row in enumerate(record["values"])]
        )


def _vector_rows(record: dict[str, Any]) -> dict[str, str]:
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
    elif record["form"] == "raw":
        rows["values"] = " or ".join(f"{count} {dtype}" for dtype, count in record["values_if"].items())
    else:
        rows["basis"] = f"{record['basis_id']}..."
        or_else = f" or {record['count_or']}" if "count_or" in record else ""
        rows["values"] = f"{record['count']}{or_else} {record['dtype']}"
    return rows


def _inspect_model(path: Path, keys: list[Ed25519Verifier], as_json: bool) -> None:
    with console.progress(f"checking {path}"):
        record = _checked(path, keys)
    if as_json:
        console.print_json(record)
        return
    console.facts(_model_rows(record))


def _checked(path: Path, keys: list[Ed25519Verifier]) -> dict[str, Any]:
    """Return what a basis or a bundle is, once it is known to be sound."""
    if path.is_file() and (path.name.endswith("basis.gguf") or vectors.is_basis(path)):
        if keys:
            raise typer.BadParameter("a basis alone is not signed: name the bundle", param_hint="--key")
        basis = load_basis(path)
        return {"kind": "basis", "path": str(path)} | _basis_facts(basis, path)
    bundle = Bundle.find(path)
    signature = _check_signature(bundle, keys)
    basis = bundle.basis
    record = {"kind": "bundle", "path": str(path)} | _basis_facts(basis, bundle.basis_path)
    record["base"] = {
        "path": str(bundle.base),
        "bytes": _size(bundle.base),
        "fingerprint": bundle.check_base(),
    }
    record["manifest"] = bundle.manifest
    record["signature"] = signature
    _check_manifest(bundle)
    return record


def _check_signature(bundle: Bundle, keys: list[Ed25519Verifier]) -> dict[str, Any] | None:
    """Return what is known of a bundle's signature, or None where there is none and no key asks for one.

    Raises:
        TrustError: it does not verify under the keys, or a file is not as it was signed.
    """
    path = signature_path(bundle)
    if keys:
        files = check_bundle(bundle, keys)
        return {"key": Signature.read(path).key, "verified": True, "files": len(files)}
    return {"key": Signature.read(path).key, "verified": False} if path.exists() else None


def _size(base: Path) -> int:
    """Bytes of a base: a GGUF file, or a directory with a graph, its data and its tokenizer."""
    files = base.iterdir() if base.is_dir() else [base]
    return sum(file.stat().st_size for file in files if file.is_file())


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
        "modules_in_group": [int((basis.tying == g).sum()) for g in range(basis.groups)],
        "seed": basis.seed,
        "projection": basis.projection,
        "prior": basis.prior is not None,
        "factorization": basis.factorization,
        "factor_dtype": {4: "f32", 2: "f16"}[basis.a[0].itemsize],
        "base_fingerprints": list(basis.base_fingerprints),
        "vector_bytes": vectors.sizes(basis.size),
    }


def _model_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    wire = record["vector_bytes"]
    members = record["modules_in_group"]
    spread = str(members[0]) if len(set(members)) == 1 else f"{min(members)} to {max(members)}"
    origin = "stored in the basis" if record["projection"] == EXPLICIT else f"seed {record['seed']}"
    rows = [
        (record["kind"], record["path"]),
        ("digest", f"{record['digest']} (verified)"),
        ("architecture", record["architecture"]),
        ("modules", f"{record['modules']} ({', '.join(record['kinds'])})"),
        ("factors", f"rank {record['rank']}, {record['factorization']}, {record['factor_dtype']}"),
        ("projection", f"{record['projection']}, {origin}"),
        ("vector", vectors.shape(record["values"], record["groups"], record["u"])),
        ("prior", "mean and covariance" if record["prior"] else "none"),
        ("tying", f"{record['tying']}, {spread} modules a group"),
        ("basis", f"{record['basis']['path']}, {console.megabytes(record['basis']['bytes'])}"),
    ]
    if record["kind"] == "bundle":
        base, manifest = record["base"], record["manifest"]
        rows.append(("base", f"{base['path']}, {console.megabytes(base['bytes'])}"))
        rows.append(("fingerprint", f"{base['fingerprint']} (listed in the basis)"))
        if (signature := record["signature"]) is not None:
            state = (
                f"{console.counted(signature['files'], 'file')} verified"
                if signature["verified"]
                else "not checked: --key FILE"
            )
            rows.append(("signature", f"by {signature['key']} ({state})"))
        exported = manifest.get("base")
        if isinstance(exported, dict) and "name" in exported:
            rows.append(("exported from", str(exported["name"])))
        rows += sources(manifest.get("source"))
        if "tool" in manifest:
            rows.append(("exported by", str(manifest["tool"])))
        residual = (
            manifest["factors"].get("worst_residual") if isinstance(manifest.get("factors"), dict) else None
        )
        if isinstance(residual, float):
            rows.append(("worst residual", f"{residual:.2e}"))
    rows.append(("bases listed", str(len(record["base_fingerprints"]))))
    for dtype, forms in wire.items():
        rows.append((f"{dtype} on the wire", ", ".join(f"{size} {form}" for form, size in forms.items())))
    return rows


def _check_manifest(bundle: Bundle) -> None:
    stated = bundle.manifest.get("basis")
    digest = stated.get("digest") if isinstance(stated, dict) else None
    if digest is not None and digest != bundle.basis.digest:
        raise BasisError(
            f"{bundle.manifest_path} states digest {str(digest)[:16]}..., but {bundle.basis_path} has "
            f"{bundle.basis.digest[:16]}...: they come from different exports. Export the bundle again"
        )


def _is_gguf(path: Path) -> bool:
    # A damaged basis is still to be told from a vector, hence the name.
    if path.name.endswith(".gguf"):
        return True
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
