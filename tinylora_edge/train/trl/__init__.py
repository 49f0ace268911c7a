"""TRL as the engine of training: for models that need a GPU, or several."""
