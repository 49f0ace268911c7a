"""The factors of an export: made of weights side by side, and kept in a journal until it is finished."""
