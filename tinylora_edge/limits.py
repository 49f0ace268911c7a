"""Limits: how much a file or a request may declare, so that no small one takes gigabytes or minutes.

Each stands well above whatever a model or a tool writes today; what a file holds within them takes memory and
time in proportion to its own bytes.
"""

from __future__ import annotations

# Of a vector and its projection.
VALUES = 500_000  # numbers of a vector: 2 MB in float32. 64 x 8 has up to 451,584 in dense models
RANK = 256  # right or left directions of factors. Beyond some tens they add nothing, and each module has p q
PROJECTION_ENTRIES = 1 << 26  # of P, M * k * k or, of a learned projection, n * M * k * k: 256 MB in float32
PROJECTIONS = 1 << 6  # that are stored beside the factors, or named there
PRIOR_VALUES = 1 << 10  # of a vector that has a prior: its covariance is inverted, in cubic time
VECTOR_FILE_BYTES = 1 << 21  # of a vector's file: `VALUES` in float32 with a signature
PEM_BYTES = 1 << 12  # of a key in PEM. OpenSSL's of Ed25519 have 119 and 113
USER_CHARACTERS = 1 << 7  # of a user's name, which a state keeps. What is published has up to 64

# Of a model and its files.
MODULES = 1 << 14  # of a model. The largest models have some 1,500
BLOCKS = 1 << 12  # of a decoder: the table of their tensors' names has 10 kB a block. The largest have 130
NAME_BYTES = 1 << 10  # of a name in a model's file: of a tensor, a module, a metadata key
ENTRIES = 1 << 18  # tensors, metadata keys or fields of a model's file. The most tensors are 100,000
STRINGS = 1 << 22  # of one metadata list. The largest vocabularies have 256,000, and their merges 500,000
TOKENIZER_BYTES = 1 << 26  # of a `tokenizer.json`. That of Gemma 3, with 262,144 tokens, has 33 MB
BUNDLE_FILES = 1 << 12  # of a bundle. A model in the most parts that are usual has some hundred

# Of documents.
DOCUMENT_BYTES = 1 << 24  # of JSON, or of a text in a model's file. Chat templates have up to 100 kB
DATA_BYTES = 1 << 28  # of a file of samples, each line of which is a document: 400,000 lines of 600 bytes
DEPTH = 64  # lists and objects inside each other in JSON; what tools write has fewer than 10
DIGITS = 40  # of an integer in JSON: the state of a random generator has 39
BODY_BYTES = 1 << 20  # of an HTTP request, unless a server is told otherwise. Long chats have some 100 kB
