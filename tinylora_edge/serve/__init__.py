"""The server: an OpenAI-compatible interface in which every request has its user's vector.

* `store/` keeps users' vectors; it needs nothing but the standard library.
"""
