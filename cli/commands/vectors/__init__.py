"""`tinylora-edge vector`: the commands that make, read and carry vectors."""
