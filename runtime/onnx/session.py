"""A baked graph on plain ONNX Runtime, for those who run their own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime

from ...errors import BaseMismatchError, VectorError
from ...formats.onnx_graph import INPUT_NAME, REQUIRED
from ...formats.signatures import signed
from ...vector import Policy
from ...wire.tags import Ed25519Verifier
from ..admission import VectorSource
from ..lock import Process
from .bundle import OnnxBundle
from .rows import Rows, as_file, rows

SPIN = {"session.intra_op.spin_duration_us": "50"}
"""An option of sessions: how long a thread spins before it sleeps. ONNX Runtime's own are milliseconds, and
where other work wants the cores too, each operation waits that long for a thread that does not run."""

_PLAIN = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "log_severity_level",
    "log_verbosity_level",
)
"""Options that genai_config.json words as `onnxruntime.SessionOptions` has them."""


class RunOptions(onnxruntime.RunOptions):  # type: ignore[misc]
    """ONNX Runtime's options of a run, which remember that they hold an adapter.

    ONNX Runtime itself, without a word, takes an adapter over a feed, the first of two, and none under an
    IOBinding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adapters: list[Any] = []

    def add_active_adapter(self, adapter: Any) -> None:
        """As `onnxruntime.RunOptions.add_active_adapter`; a second one is refused by a `VectorError`."""
        if self.adapters:
            raise VectorError(
                "two adapters in one run: ONNX Runtime would apply the first alone, without a word. Make "
                "RunOptions for each"
            )
        super().add_active_adapter(adapter)
        self.adapters.append(adapter)


class OnnxSession:
    """An `onnxruntime.InferenceSession` of a baked graph, with checked vectors.

    It holds no vector: each run says which ones it is for, and your loop begins its KV cache anew with them.

        session = OnnxSession("bundle")
        alice_and_bob = session.rows([alice_bytes, bob_bytes])      # one row a sequence of the batch
        logits, *present = session.run(None, feeds, alice_and_bob)

    Args:
        base: a bundle that `export --format onnx` wrote, its `onnx/` directory, or an `.onnx` in it.
        policy: what is demanded of vector bytes.
        bundle_keys: of which one has to have signed the bundle; without any, signatures are not looked at.
        options: those of `onnxruntime.InferenceSession` (`sess_options`, `providers`, ...). The provider
            is the CPU's unless given.

    Attributes:
        session: the `onnxruntime.InferenceSession`. Its own `run` checks nothing.
        basis: the basis of the vectors.
        flavour: `default` or `required`: whether the graph can be run without a vector.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        CorruptBasisError: the side tensors are damaged.
        BaseMismatchError: the graph was not baked with this basis, its weights are not there, or the
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
        bundle = OnnxBundle.find(base)
        self.policy = policy or Policy()
        with signed(bundle.bundle, bundle_keys, engine="onnx"):
            self._start(bundle, options)

    def _start(self, bundle: OnnxBundle, options: dict[str, Any]) -> None:
        bundle.check()
        self.basis = bundle.basis
        self.flavour = bundle.flavour
        self._path = str(bundle.model)
        self.session = open_session(bundle, **options)
        inputs = [*self.session.get_inputs(), *self.session.get_overridable_initializers()]
        self._inputs = {node.name: node for node in inputs}
        self._outputs = [node.name for node in self.session.get_outputs()]
        self._batch = {
            node.name for node in self.session.get_inputs() if node.name != INPUT_NAME and _batched(node)
        }
        self._zeros = self.rows(None)
        self._process = Process()

    def __repr__(self) -> str:
        return f"OnnxSession({self._path!r}, basis {self.basis.id}, {self.flavour})"

    def rows(
        self,
        vectors: VectorSource | Sequence[VectorSource | None] | None,
        *,
        streams: str | Sequence[str] = "",
    ) -> Rows:
        """Return checked vectors for a run: one for the whole batch, or one for each of its sequences.

        Args:
            vectors: a frame, a raw payload, a `MicroVector`, or None for the base; or a sequence of them.
            streams: which sequence of vectors the bytes belong to (see `Policy`): one, or one a row.

        Raises:
            VectorError: one is refused; the message says which. None counts as accepted then.
        """
        return rows(vectors, self.basis, self.policy, streams)

    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        rows: Rows | None = None,
        run_options: RunOptions | None = None,
    ) -> list[Any]:
        """As `onnxruntime.InferenceSession.run`, with vectors.

        Args:
            output_names: what to compute; None for everything.
            feeds: name -> array or `OrtValue`, without the vector.
            rows: from `rows`; None for the base, or for the adapter in `run_options`.
            run_options: `RunOptions` of this module.

        Raises:
            VectorError: the rows do not match the batch or are for another basis; a vector among the
                feeds; a vector together with an adapter; options whose adapters cannot be seen.
            ValueError: the graph has no such input or output.
        """
        self._process.check()
        adapted = self._check_options(run_options)
        if adapted and rows is not None:
            raise VectorError(
                f"the run has rows for {INPUT_NAME} and an adapter too: ONNX Runtime would take the adapter, "
                "without a word. Pass one"
            )
        self._check_names(feeds, output_names)
        given = dict(feeds)
        if not adapted:
            given[INPUT_NAME] = self._feed(rows, feeds)
        result: list[Any] = self.session.run(output_names, given, run_options)
        return result

    def io_binding(self, rows: Rows | None = None) -> Any:
        """Return an `onnxruntime.IOBinding` with the vectors bound; bind the rest, then run it.

        It does not see what else is bound: that there is a row for each sequence is the caller's to know.

        Raises:
            VectorError: the rows are for another basis.
        """
        self._process.check()
        binding = self.session.io_binding()
        # bind_cpu_input knows no inputs that have a default.
        value = onnxruntime.OrtValue.ortvalue_from_numpy(self._checked(rows).values)
        binding.bind_ortvalue_input(INPUT_NAME, value)
        return binding

    def run_with_iobinding(self, binding: Any, run_options: RunOptions | None = None) -> None:
        """As `onnxruntime.InferenceSession.run_with_iobinding`.

        Raises:
            VectorError: the options hold an adapter, which ONNX Runtime ignores here without a word.
        """
        self._process.check()
        if self._check_options(run_options):
            raise VectorError(
                "an adapter under IOBinding: ONNX Runtime would ignore it without a word. Make the binding "
                "with io_binding(rows)"
            )
        self.session.run_with_iobinding(binding, run_options)

    def adapter(self, vector: VectorSource) -> Any:
        """Return an `onnxruntime.LoraAdapter` of one vector, for `RunOptions.add_active_adapter`.

        Raises:
            VectorError: the vector is refused, or the graph requires its vector as an input, which an
                adapter is not.
        """
        if self.flavour == REQUIRED:
            raise VectorError(
                f"the graph's flavour is {REQUIRED!r}, and ONNX Runtime takes no adapter for an input that "
                "has to be fed: pass rows=session.rows(...)"
            )
        adapter = onnxruntime.LoraAdapter()
        with as_file(self.rows(vector).adapter(self.basis)) as path:
            adapter.Load(path)
        return adapter

    def _feed(self, rows: Rows | None, feeds: Mapping[str, Any]) -> Any:
        checked = self._checked(rows)
        for name in self._batch & feeds.keys():
            given = feeds[name]
            shape = given.shape() if isinstance(given, onnxruntime.OrtValue) else np.shape(given)
            if shape:  # ONNX Runtime itself refuses a number
                checked.check_batch(int(shape[0]))
        return checked.values

    def _checked(self, rows: Rows | None) -> Rows:
        if rows is None:
            return self._zeros
        if rows.digest != self.basis.digest:
            raise VectorError(
                f"the rows were checked for basis {rows.digest[:8]}, but this session has {self.basis.id}: "
                "make them with this session's rows()"
            )
        return rows

    def _check_options(self, run_options: Any) -> bool:
        """Tell whether a run has an adapter."""
        if run_options is None:
            return False
        if not isinstance(run_options, RunOptions):
            raise VectorError(
                "plain onnxruntime.RunOptions do not tell whether they hold an adapter, which would be "
                "ignored or mixed with the vector without a word: use tinylora_edge.runtime.RunOptions"
            )
        return bool(run_options.adapters)

    def _check_names(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None) -> None:
        if INPUT_NAME in feeds:
            raise VectorError(
                f"{INPUT_NAME} is among the feeds, unchecked: pass rows=session.rows(...) instead"
            )
        for kind, names, known in (("input", feeds, self._inputs), ("output", outputs or (), self._outputs)):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"the graph has no {kind} {unknown[0]!r}; it has {', '.join(known)}")


def open_session(
    bundle: OnnxBundle,
    *,
    sess_options: Any = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    given: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Any:
    """Return an `onnxruntime.InferenceSession` of a bundle's graph.

    Args:
        bundle: checked.
        sess_options, providers, options: of `onnxruntime.InferenceSession`.
        given: options of a session as genai_config.json words them, where there are no `sess_options`.

    Raises:
        BaseMismatchError: ONNX Runtime cannot load it.
    """
    if sess_options is None:
        sess_options = onnxruntime.SessionOptions()
        sess_options.log_severity_level = 3  # a default that can be fed is warned of each time
        for name, value in {**SPIN, **given}.items():
            if name in _PLAIN:
                setattr(sess_options, name, value)
            elif name == "graph_optimization_level":
                level = getattr(onnxruntime.GraphOptimizationLevel, str(value))
                sess_options.graph_optimization_level = level
            elif "." in name:
                sess_options.add_session_config_entry(name, str(value))
    try:
        return onnxruntime.InferenceSession(
            str(bundle.model), sess_options, providers=list(providers), **options
        )
    except Exception as error:  # its exceptions are of a dozen types, all of them direct children
        raise cannot_load(bundle, error) from error


def cannot_load(bundle: OnnxBundle, error: Exception) -> BaseMismatchError:
    """Return the error that says why the engine cannot load a model."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in bundle.file.opsets.items())
    reason = " ".join(str(error).split())
    return BaseMismatchError(
        f"onnxruntime {onnxruntime.__version__} cannot load {bundle.model} (IR {bundle.file.ir_version}, "
        f"opsets {opsets}): {reason[:300]}"
    )


def _batched(node: Any) -> bool:
    # Symbolic first dimensions of a decoder's inputs are its batch, whatever their name.
    return bool(node.shape) and not isinstance(node.shape[0], int)
