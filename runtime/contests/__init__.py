"""A vector against what would be used in its place: prompts, worked examples, LoRAs. Knows no engine."""
