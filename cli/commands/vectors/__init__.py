"""The commands about vectors: the group `vector`, and `convert`."""
