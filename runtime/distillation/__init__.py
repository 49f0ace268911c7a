"""Distillation on the device: a prompt becomes a micro-vector, by forward passes alone."""
