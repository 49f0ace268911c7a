"""The harnesses of every reader, by name."""

from __future__ import annotations

import container_readers
import document_readers
import gguf_readers
import request_readers
import wire_readers
from harness import Harness

READERS: dict[str, Harness] = {
    harness.name: harness
    for harness in (
        *wire_readers.HARNESSES,
        *gguf_readers.HARNESSES,
        *container_readers.HARNESSES,
        *document_readers.HARNESSES,
        *request_readers.HARNESSES,
    )
}
