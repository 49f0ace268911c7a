"""The scheduler of a pool on llama.cpp: contexts over the same weights, in which many users take turns."""
