"""The commands that find a vector, and measure what it is worth."""
