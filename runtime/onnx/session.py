"""A baked graph on plain ONNX Runtime, for those who run their own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError, VectorError
from tinylora_edge.formats.bundle import load_bundle
from tinylora_edge.formats.onnx_graph import INPUT_NAME, MODEL_NAME, input_row
from tinylora_edge.formats.signatures import signed
from tinylora_edge.vector import AdmittedVector, MicroVector, Policy
from tinylora_edge.wire.tags import Ed25519Verifier

from ..model import VectorSource, admitted

_SPIN = "session.intra_op.spin_duration_us", "50"
"""Microseconds that a thread spins before it sleeps. ONNX Runtime's default is milliseconds; where other work
uses the cores too, each operation waits that long for a thread that does not run."""


class Rows(NDArray[np.float32]):
    """R of checked vectors, float32 [rows, M P Q], and the vectors, whose last days each run checks."""

    vectors: tuple[AdmittedVector, ...] = ()

    def __array_finalize__(self, made: Any) -> None:
        self.vectors = getattr(made, "vectors", ())


class OnnxSession:
    """An `onnxruntime.InferenceSession` of a baked graph, with checked vectors.

    It holds no vector: each run names its own, and your loop begins its KV cache anew when they change.

        session = OnnxSession("bundle")
        alice_and_bob = session.rows([alice_bytes, bob_bytes], users=["alice", "bob"])
        logits, *present = session.run(None, feeds, alice_and_bob)

    Args:
        base: a bundle that `export --format onnx` wrote, its `onnx/` directory, or an `.onnx` in it.
        policy: what is demanded of vector bytes.
        bundle_keys: public keys, one of which must have signed the bundle; without any, no signature is
            checked.
        options: those of `onnxruntime.InferenceSession` (`sess_options`, `providers`, ...). The provider
            is the CPU's unless given.

    Attributes:
        session: the `onnxruntime.InferenceSession`. Its own `run` checks nothing: it takes rows as
            `tinylora_r`, over which an adapter in its options takes precedence.
        bases: those that vectors may be of.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        CorruptBasisError: the side tensors are damaged.
        BaseMismatchError: the graph was not baked with these factors, its weights are not there, or the
            installed ONNX Runtime cannot load it.
        TrustError: the bundle is not as one of `bundle_keys` signed it.
    """

    def __init__(
        self,
        base: str | PathLike[str],
        *,
        policy: Policy | None = None,
        bundle_keys: Sequence[Ed25519Verifier] = (),
        **options: Any,
    ) -> None:
        bundle = load_bundle(base)
        self.policy = policy or Policy()
        with signed(bundle, bundle_keys, engine="onnx"):
            bundle.check_onnx()
            assert bundle.onnx is not None
            self.bases = bundle.bases
            self.session = open_session(bundle.onnx / MODEL_NAME, **options)
        # Symbolic first dimensions of a decoder's inputs are its batch, whatever their name.
        shapes = {node.name: node.shape for node in self.session.get_inputs()}
        self._batch = {n for n, shape in shapes.items() if shape and isinstance(shape[0], str)} - {INPUT_NAME}
        self._zeros = self.rows(None)

    def rows(
        self, vectors: VectorSource | Sequence[VectorSource | None] | None, *, users: str | Sequence[str] = ""
    ) -> Rows:
        """Return checked vectors for runs: one for the whole batch, or one for each of its sequences.

        Args:
            vectors: a frame, a `MicroVector`, or None for the base; or a sequence of them, of any sizes.
            users: whose vectors they are (see `Policy`): one, or one a row.

        Returns:
            R, float32 [rows, M P Q]: zeros beyond p and q of each vector. Keep them as they are: an array
            that is made of them may know no last days.

        VectorError: one is refused, or frames of one user have different sequences; the message says which.
            No sequence is recorded then.
        """
        one = vectors is None or isinstance(
            vectors, bytes | bytearray | memoryview | Path | MicroVector | str
        )
        sources: list[VectorSource | None] = [vectors] if one else list(vectors)  # type: ignore[arg-type, list-item]
        if not sources:
            raise VectorError("the list of vectors is empty: pass one for all sequences, or one for each")
        names = [users] * len(sources) if isinstance(users, str) else list(users)
        if len(names) != len(sources):
            raise VectorError(
                f"there are {len(sources)} vectors, but {len(names)} users: pass one user for each"
            )
        factors = self.bases.factors
        r = np.zeros((len(sources), factors.r_size), np.float32).view(Rows)
        of: dict[str, int] = {}  # sequences by user
        with ExitStack() as admissions:  # at its end, sequences are recorded: once all vectors are accepted
            for row, (source, user) in enumerate(zip(sources, names, strict=True)):
                if source is None:
                    continue
                try:
                    admitting = admitted(source, self.bases, self.policy, user=user)
                    vector = admissions.enter_context(admitting)
                except VectorError as error:
                    if one:
                        raise
                    raise type(error)(f"row {row}: {error}") from None
                own = source[-1] if isinstance(source, list | tuple) else source  # of a stack, the user's own
                recorded = not isinstance(own, MicroVector)
                if recorded and of.setdefault(user, vector.sequence) != vector.sequence:
                    raise VectorError(
                        f"row {row} is of user {user!r} with sequence {vector.sequence}, another row with "
                        f"{of[user]}: pass users=[...], one a row"
                    )
                r[row] = input_row(vector.r, factors.shape)
                r.vectors += (vector,)
        return r

    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        rows: NDArray[np.float32] | None = None,
    ) -> list[Any]:
        """As `onnxruntime.InferenceSession.run`, with vectors.

        Args:
            output_names: what to compute; None for everything.
            feeds: name -> array or `OrtValue`, without R.
            rows: from `rows`; None for the base.

        VectorError: the rows do not match the batch; R among the feeds; a vector's last day is over
        (ExpiredError).
        """
        if INPUT_NAME in feeds:
            raise VectorError(
                f"{INPUT_NAME} is among the feeds, unchecked: pass rows=session.rows(...) instead"
            )
        rows = self._zeros if rows is None else rows
        for vector in getattr(rows, "vectors", ()):
            self.policy.in_force(vector)
        count = len(rows)
        for name in self._batch & feeds.keys():
            feed = feeds[name]
            shape = feed.shape() if isinstance(feed, onnxruntime.OrtValue) else np.shape(feed)
            if shape and count not in (1, shape[0]):  # ONNX Runtime refuses a feed without a shape
                raise VectorError(
                    f"there are {count} rows of vectors, but the batch has {shape[0]} sequences: pass one "
                    f"vector for all, or {shape[0]}, one for each"
                )
        result: list[Any] = self.session.run(output_names, {**feeds, INPUT_NAME: rows})
        return result


def open_session(
    path: Path,
    *,
    sess_options: Any = None,
    n_threads: int | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    **options: Any,
) -> Any:
    """Return an `onnxruntime.InferenceSession` of a checked graph, with so many threads an operation.

    BaseMismatchError: ONNX Runtime cannot load it.
    """
    if sess_options is None:
        sess_options = onnxruntime.SessionOptions()
        sess_options.log_severity_level = 3  # else each load warns that R has a default and can be fed
        sess_options.add_session_config_entry(*_SPIN)
    if n_threads is not None:
        sess_options.intra_op_num_threads = n_threads
    try:
        return onnxruntime.InferenceSession(str(path), sess_options, providers=list(providers), **options)
    except Exception as error:  # its exceptions are of a dozen types, with no base class but Exception
        raise cannot_load(path, error) from error


def cannot_load(path: Path, error: Exception) -> BaseMismatchError:
    """Return the error that says why the engine cannot load a model."""
    reason = " ".join(str(error).split())
    return BaseMismatchError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {reason[:300]}")
