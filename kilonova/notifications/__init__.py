"""Telling other services what happens: what notifications say, and where they go."""
