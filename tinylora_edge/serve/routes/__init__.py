"""The routes of a server: `bodies` come in, `replies` go out, and `exchange` is around both."""
