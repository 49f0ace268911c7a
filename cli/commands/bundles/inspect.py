"""`inspect`: what a bundle, a basis or a vector is, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Basis, BasisError, Bundle, Policy, load_basis
from ....formats.signatures import check_bundle, read_signature
from ....projection import EXPLICIT
from ....trust import Bundles
from ...shared import console, downloads, keyfiles, vectors
from ...shared.options import JsonOption, KeysOption, MacsOption, MarkStreamOption, TrustOption
from ..vectors.inspect import print_vector


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A bundle, a basis.gguf, a model with its basis beside it, or a vector."
        ),
    ],
    basis: Annotated[
        Path | None,
        typer.Option("--basis", "--bundle", metavar="PATH", help="Verify a vector against this basis."),
    ] = None,
    keys: KeysOption = None,
    macs: MacsOption = None,
    trust: TrustOption = None,
    stream: MarkStreamOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle, a basis or a vector is, and check it.

    Of a bundle: that the basis gives the digest that it states, and that the base is one that it was
    exported for; with --key or --trust, that its files are those that were signed. Of a vector, with
    --basis: its tag, its basis, and its values.

    \b
    Example:
      tinylora-edge inspect out/demo
    """
    if str(path) != vectors.STREAM and not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a bundle, a basis, a model or a vector")
    if path.is_dir() or _is_gguf(path):
        if basis is not None:
            raise typer.BadParameter("only a vector is verified against a basis", param_hint="--basis")
        rules = Policy(bundle_keys=keyfiles.public_keys(keys), trust=trust).bundles
        _inspect_model(path, rules, as_json)
    else:
        verify = ("inspect", path, "--basis", "BUNDLE")
        print_vector(str(path), basis, as_json, verify, keys, macs, trust, stream)


def _inspect_model(path: Path, rules: Bundles, as_json: bool) -> None:
    with console.working(f"checking {path}"):
        record = _checked(path, rules)
    if as_json:
        console.print_json(record)
        return
    console.facts(_model_rows(record))


def _checked(path: Path, rules: Bundles) -> dict[str, Any]:
    """Return what a basis or a bundle is, once it is known to be sound."""
    if path.is_file() and (path.name.endswith("basis.gguf") or vectors.is_basis(path)):
        if rules.keys:
            raise typer.BadParameter("a basis alone is not signed: name the bundle", param_hint="--key")
        basis = load_basis(path)
        return {"kind": "basis", "path": str(path)} | _basis_facts(basis, path)
    bundle = Bundle.find(path)
    signature = _check_signature(bundle, rules)
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


def _check_signature(bundle: Bundle, rules: Bundles) -> dict[str, Any] | None:
    """Return what is known of a bundle's signature, or None where there is none and no key asks for one.

    Raises:
        TrustError: it does not verify under the keys, or a file is not as it was signed.
    """
    keys, refused = rules.signers()
    if keys:
        checked = check_bundle(bundle, keys, refused=refused)
        about = {"name": checked.said.name, "sequence": checked.said.sequence}
        return {"keys": [checked.said.key], "verified": True, "files": len(checked.files)} | about
    envelope = read_signature(bundle)
    if envelope is None:
        return None
    return {"keys": [key for key, _ in envelope.signatures], "verified": False}


def _sequence(signature: dict[str, Any]) -> str:
    return f", {signature['name']} {signature['sequence']}" if signature["sequence"] else ""


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
        "axes": list(basis.axes),
        "prior": basis.has_prior,
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
        ("axes", ", ".join(record["axes"]) or "without names"),
        ("prior", "mean and covariance" if record["prior"] else "none"),
        ("tying", f"{record['tying']}, {spread} modules a group"),
        ("basis", f"{record['basis']['path']}, {console.megabytes(record['basis']['bytes'])}"),
    ]
    if record["kind"] == "bundle":
        base, manifest = record["base"], record["manifest"]
        rows.append(("base", f"{base['path']}, {console.megabytes(base['bytes'])}"))
        rows.append(("fingerprint", f"{base['fingerprint']} (listed in the basis)"))
        if (signature := record["signature"]) is not None:
            by = ", ".join(signature["keys"])
            state = (
                f"{console.counted(signature['files'], 'file')} verified{_sequence(signature)}"
                if signature["verified"]
                else "not checked: --key FILE"
            )
            rows.append(("signature", f"by {by} ({state})"))
        exported = manifest.get("base")
        if isinstance(exported, dict) and "name" in exported:
            rows.append(("exported from", str(exported["name"])))
        rows += downloads.sources(manifest.get("source"))
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
