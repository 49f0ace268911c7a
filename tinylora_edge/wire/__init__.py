"""A vector as bytes: frames, tags, keys, text forms, and what a receiver remembers. It knows no model."""
