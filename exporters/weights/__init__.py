"""The weights of a model, read row by row from GGUF files and Hugging Face directories."""
