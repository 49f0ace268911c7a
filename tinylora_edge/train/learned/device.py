"""The device that a student computes on."""

from __future__ import annotations

import torch

from ...errors import TrainError


def find_device(name: str | None = None) -> torch.device:
    """Return the device of a name; without one a CUDA GPU where torch finds one, else the CPU.

    Raises:
        TrainError: torch has no such device here.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        torch.zeros(1, device=device).cpu()
    # What torch raises depends on the device that is missing.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0][:120].rstrip(".")
        raise TrainError(
            f"torch cannot compute on device {chosen!r} here: {why}. Name another, such as cpu"
        ) from None
    return device
