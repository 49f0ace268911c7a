"""`python -m tinylora_edge.train.trl`: one process of a training run, from a recipe and options."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
