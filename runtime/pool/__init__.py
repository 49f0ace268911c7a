"""Many users of one model at the same time, each with a vector of his own.

* `pool` is what an app uses: `Pool` answers with `await` and streams with `async for`.
* `request` has what is asked and what comes back, `scheduler` the interface that an engine fills.
* `waiting`, `sampling` and `text` are the parts that every engine's scheduler is made of.
"""
