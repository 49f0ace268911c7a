"""Vectors as bytes, for code that moves, signs or stores them. Nothing here knows a model or a basis."""
