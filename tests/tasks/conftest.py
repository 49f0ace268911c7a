"""Makes pytest find `answers`, which lies here, in the folders below too."""
