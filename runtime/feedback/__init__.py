"""Feedback: v from clicks, while an app is used."""
