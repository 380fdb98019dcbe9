"""The driver protocol and its implementations."""
