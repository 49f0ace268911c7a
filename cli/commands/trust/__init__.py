"""The commands about trust files: the keys that may sign vectors, over years."""
