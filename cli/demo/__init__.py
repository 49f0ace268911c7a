"""`tinylora-edge demo`: the whole story on one page."""
