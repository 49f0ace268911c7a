"""Vectors on a web server: the published layout, and both of its ends."""
