"""Tuning: v from rewards, found on the device by forward passes."""
