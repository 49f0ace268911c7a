"""Limits: how much a file or a request may declare, so that no small one takes gigabytes or minutes.

Each stands well above whatever a model or a tool writes today; what a file holds within them takes memory and
time in proportion to its own bytes.
"""

from __future__ import annotations

VALUES = 500_000
"""Numbers of a vector: 2 MB in float32. All entries of 64 x 8: 107,520 for 210 modules, 451,584 for the 882
of the largest dense models."""

RANK = 256
"""Right or left directions of factors. Above some tens they add nothing, and p q floats a module are made."""

PROJECTION_ENTRIES = 1 << 26
"""Entries of P, M * k * k or, of a learned projection, n * M * k * k: 256 MB in float32."""

PROJECTIONS = 1 << 6
"""Projections that are stored beside the factors, or named there."""

PRIOR_VALUES = 1 << 10
"""Values of a vector that has a prior: its covariance is inverted, in cubic time."""

MODULES = 1 << 14
"""Modules of a model. The largest models have some 1,500."""

BLOCKS = 1 << 12
"""Decoder blocks of a model: the table of their tensors' names has 10 kB a block. The largest have 130."""

NAME_BYTES = 1 << 10
"""Bytes of a name in a model's file: of a tensor, a module, a metadata key."""

ENTRIES = 1 << 18
"""Tensors, metadata keys or fields of a model's file. The largest checkpoints have 100,000 tensors."""

STRINGS = 1 << 22
"""Texts of one metadata list. The largest vocabularies have 256,000, and their merges 500,000."""

DOCUMENT_BYTES = 1 << 24
"""Bytes of a JSON document, or of a text in a model's file. Chat templates have up to 100 kB."""

DATA_BYTES = 1 << 28
"""Bytes of a file of samples, each line of which is a document: 400,000 lines of 600 bytes."""

TOKENIZER_BYTES = 1 << 26
"""Bytes of a `tokenizer.json`. That of Gemma 3, with 262,144 tokens, has 33 MB."""

DEPTH = 64
"""Lists and objects inside each other in JSON; what tools write has fewer than 10."""

DIGITS = 40
"""Digits of an integer in JSON: the state of a random generator has 39."""

BUNDLE_FILES = 1 << 12
"""Files of a bundle. A model in the most parts that are usual has some hundred."""

VECTOR_FILE_BYTES = 1 << 21
"""Bytes of a vector's file: `VALUES` in float32 with a signature."""

PEM_BYTES = 1 << 12
"""Bytes of a key in PEM. OpenSSL's of Ed25519 have 119 and 113."""

USER_CHARACTERS = 1 << 7
"""Characters of a user's name, which a state keeps. What is published has up to 64."""

BODY_BYTES = 1 << 20
"""Bytes of the body of an HTTP request, unless a server is told otherwise. Long chats have some 100 kB."""
