"""Maxima: how much a file may declare, so that no small file takes gigabytes or minutes.

Every reader takes its limits from here. Each stands well above whatever a model or a tool writes today; what
a file holds within them takes memory and time in proportion to its own bytes.
"""

from __future__ import annotations

VALUES = 250_000
"""Values of a vector, G * u: 1 MB in float32. The largest in use, every entry of R, have some thousands."""

RANK = 256
"""Rank of factors. Ranks above some tens add nothing to a vector, and r * r floats a module are made."""

PROJECTION_ENTRIES = 1 << 26
"""Entries of all projections together, M * u * r * r: 256 MB in float32, made from 30 bytes of a header."""

PRIOR_VALUES = 1 << 10
"""Values of a vector that has a prior: its covariance is inverted, in cubic time."""

MODULES = 1 << 14
"""Modules of a basis. The largest models have some 1,500."""

BLOCKS = 1 << 12
"""Decoder blocks of a model: the table of their tensors' names has 10 kB a block. The largest have 130."""

NAME_BYTES = 1 << 8
"""Bytes of a tensor's name. llama.cpp takes 64."""

KEY_BYTES = 1 << 10
"""Bytes of a metadata key. The longest in use have about 60."""

KEYS = 1 << 16
"""Metadata keys of a file. Models have about 50."""

STRING_BYTES = 1 << 24
"""Bytes of one text in metadata. Chat templates have up to 100 kB, and lists of modules as much."""

STRINGS = 1 << 22
"""Texts of one metadata list. The largest vocabularies have 256,000, and their merges 500,000."""

ONNX_FIELDS = 1 << 18
"""Fields of a message of an ONNX file. A graph has one for each node and initializer: some thousands."""

TENSORS = 1 << 18
"""Tensors of a file. The largest checkpoints have 100,000, an expert a tensor."""

DIMENSIONS = 8
"""Dimensions of a tensor in files of ONNX. GGUF has 4."""

DOCUMENT_BYTES = 1 << 24
"""Bytes of any other JSON, where its reader names no other limit."""

TOKENIZER_BYTES = 1 << 26
"""Bytes of a `tokenizer.json`. That of Gemma 3, with 262,144 tokens, has 33 MB."""

DEPTH = 64
"""Lists and objects inside each other in JSON; what tools write has fewer than 10."""

DIGITS = 40
"""Digits of an integer in JSON: the state of a random generator has 39."""

VECTOR_FILE_BYTES = 1 << 20
"""Bytes of a vector's file: `VALUES` in float32 with a signature."""

TEXT_CHARACTERS = 1 << 21
"""Characters of a vector as text: those of the most values in hexadecimal, and white space."""

PEM_BYTES = 1 << 12
"""Bytes of a key in PEM. OpenSSL's of Ed25519 have 119 and 113."""

STATE_BYTES = 1 << 24
"""Bytes of a policy's state: a hundred thousand streams."""

STREAM_CHARACTERS = 1 << 7
"""Characters of a stream's name, which a state keeps. What is published has up to 64."""

EXCHANGE_BYTES = 1 << 16
"""Bytes that an attempt to fetch reads besides the body: headers, redirects, chunk sizes, trailers."""

BUNDLE_FILES = 1 << 12
"""Files of a bundle. A model in the most parts that are usual has some hundred."""

STOPS = 16
"""Stop texts of a request. OpenAI's interface has 4."""

STOP_CHARACTERS = 1 << 10
"""Characters of a stop text: every piece of an answer is searched for them."""

LOGPROBS = 20
"""Likeliest tokens that are told beside each token: OpenAI's own limit."""

SCHEMA_BYTES = 1 << 16
"""Bytes of a JSON schema that an answer keeps to: a grammar is made of it, in more than linear time."""

SCHEMA_PROPERTIES = 400
"""Properties of an object in a schema: llguidance goes on with 2,000 items at once, and each that may be left
out is four of them."""

SCHEMA_NUMBER = 1 << 53
"""Size of a number in a schema: what JSON promises to keep (RFC 8259, section 6). At -2^63 llguidance 1.9
overflows its stack."""

SCHEMA_MULTIPLES = 10_000
"""Least common multiple of all that numbers in a schema are to be multiples of, without decimal points: an
automaton has a state for each remainder, and two rules for one number have one for each pair."""

SCHEMA_REPEATS = 4096
"""Characters that the patterns of a schema repeat, counted repetitions written out, and its lengths where a
pattern has to hold as well. With 65,536 of them a schema of 200 bytes takes llguidance 21 seconds."""

BODY_BYTES = 1 << 20
"""Bytes of the body of an HTTP request, unless a server is told otherwise. Long chats have some 100 kB."""


def overlap(places: list[tuple[int, int, str]]) -> tuple[str, str] | None:
    """Return the names of two places in a file that overlap, or None.

    Two tensors over the same bytes would let a small file hold much.

    Args:
        places: begin, end and name of each; empty ones overlap nothing.
    """
    before: tuple[int, int, str] | None = None
    for place in sorted(place for place in places if place[0] < place[1]):
        if before is not None and place[0] < before[1]:
            return before[2], place[2]
        if before is None or place[1] > before[1]:
            before = place
    return None
