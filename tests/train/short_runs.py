"""Settings of whole runs that take seconds on the tiny model."""

from __future__ import annotations

from tinylora_edge.train import TrainSettings

FAST = TrainSettings(steps=6, prompts=4, validate_every=3, validation=16, checkpoint_every=2, lr=0.2, seed=1)
