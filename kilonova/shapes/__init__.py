"""Guest shapes: what flavor and image ask of a guest, read once, checked against each other, and typed.

One module for each topic reads its part; `shape.py` puts them together. `fitting.py` finds the place of a shape on a
host. Who needs to know what was asked for reads a `Shape` and never an extra spec.
"""
