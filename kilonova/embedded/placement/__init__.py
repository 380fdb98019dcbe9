"""The placement service of one machine: a window on the claims of the compute database, over HTTP."""

from kilonova.embedded.placement.app import EmbeddedPlacement

__all__ = ["EmbeddedPlacement"]
