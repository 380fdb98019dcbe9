"""The journaled operation engine. It knows nothing of compute."""
