"""Comparing what is recorded with what exists, and removing what provably belongs to nothing."""
