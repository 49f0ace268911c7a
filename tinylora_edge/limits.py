"""Limits on what a file or a request may declare, so that a small one cannot take gigabytes or minutes.

Each limit is well above what models and tools write today. Below it, memory and time are in proportion to the
bytes of the file.
"""

from __future__ import annotations

# Vectors and projections
VALUES = 500_000  # numbers of a vector, 2 MB in float32; in Llama 3.1 405B, 64 x 8 has 451,584
RANK = 256  # right or left directions of factors; beyond some tens they add nothing
PROJECTION_ENTRIES = 1 << 26  # entries of P, M k k or, of a learned projection, n M k k: 268 MB in float32
PROJECTIONS = 1 << 6  # projections that a file of factors stores or names
PRIOR_VALUES = 1 << 10  # numbers of a vector that has a prior: inverting its covariance takes cubic time
VECTOR_FILE_BYTES = 1 << 21  # bytes of a vector's file: `VALUES` in float32, with a signature
PEM_BYTES = 1 << 12  # bytes of a key in PEM; OpenSSL writes 119 and 113 for Ed25519
USER_CHARACTERS = 1 << 7  # characters of a user's name, which states keep; published users have up to 64

# Models and their files
MODULES = 1 << 14  # modules of a model; Llama 3.1 405B has 882
BLOCKS = 1 << 12  # blocks of a decoder, each 10 kB in the table of tensor names; Llama 3.1 405B has 126
NAME_BYTES = 1 << 10  # bytes of the name of a tensor, a module or a metadata key
ENTRIES = 1 << 18  # tensors, metadata keys or fields of a model's file; models have up to 100,000 tensors
STRINGS = 1 << 22  # texts of one metadata list; large vocabularies have 256,000, and 500,000 merges
TOKENIZER_BYTES = 1 << 26  # bytes of a `tokenizer.json`; Gemma 3's, with 262,144 tokens, has 33 MB
BUNDLE_FILES = 1 << 12  # files of a bundle; a large model in many parts has some hundred

# Documents
DOCUMENT_BYTES = 1 << 24  # bytes of JSON, or of a text in a model's file; chat templates have up to 100 kB
DATA_BYTES = 1 << 28  # bytes of a file of samples: 400,000 lines of 600 bytes
DEPTH = 64  # levels of lists and objects in JSON; tools write fewer than 10
DIGITS = 40  # digits of an integer in JSON; the state of a random generator has 39
BODY_BYTES = 1 << 20  # bytes of an HTTP request, unless a server is told otherwise; long chats have 100 kB
