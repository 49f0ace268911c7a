"""A GGUF model cut into several files, by the gguf package's own writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def split(source: Path, folder: Path, tensors: int, stem: str = "model") -> list[Path]:
    """Write a model anew with so many tensors a file, and return the files in order."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / f"{stem}.gguf", architecture, split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, *items = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=items[-1] if items else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{stem}-*.gguf"))
