"""Factors: made of weights side by side, and kept in a journal until an export is finished."""
