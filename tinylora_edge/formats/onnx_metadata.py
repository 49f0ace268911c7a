"""What an ONNX file says about itself, read without the onnx package and without its graph.

A device checks which basis a graph was baked with before an engine starts, and has no package that reads
ONNX. Fields: onnx.proto, `ModelProto`.
"""

from __future__ import annotations

from os import PathLike

from ..errors import BaseMismatchError
from . import protobuf

_METADATA_PROPS = 14
_MAX_ENTRY_BYTES = 1 << 26  # our longest, the module names, takes some 10 KB


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX model file.

    Raises:
        BaseMismatchError: the file is not an ONNX model, or is truncated.
        OSError: it cannot be read.
    """
    found: dict[str, str] = {}
    try:
        with protobuf.opened(path) as data:
            for number, value in protobuf.fields(data, 0, len(data)):
                if number != _METADATA_PROPS:
                    continue
                start, end = protobuf.span(value)
                if end - start > _MAX_ENTRY_BYTES:
                    raise protobuf.MalformedProtobufError(
                        f"an entry of its metadata has {end - start:,} bytes"
                    )
                key, text = protobuf.entry(data, value)
                found[key] = text
    except protobuf.MalformedProtobufError as error:
        raise BaseMismatchError(f"{path} is not a usable ONNX model: {error}") from None
    return found
