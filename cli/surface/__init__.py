"""The surface of every command: how it is found, what its help looks like, and what the version says."""
