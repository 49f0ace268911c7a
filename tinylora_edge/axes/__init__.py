"""The axes of a basis: what the values of v are called, and what vectors that people want look like.

The function v -> dW depends on neither, so the digest of a basis covers neither.
"""

from .names import MAX_NAME, check_names, position_of
from .prior import Prior, check_prior
from .whitening import Whitening

__all__ = ["MAX_NAME", "Prior", "Whitening", "check_names", "check_prior", "position_of"]
