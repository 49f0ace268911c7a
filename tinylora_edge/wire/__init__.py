"""A vector as bytes. Nothing here knows a model or a basis: it is for whoever moves, signs or stores them."""
