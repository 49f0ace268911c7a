"""Parts that several commands share: options, output, keys, and the bytes of vectors."""
