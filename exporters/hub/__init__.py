"""The hub: how the name of a model becomes files on this machine."""
