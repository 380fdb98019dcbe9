"""The calls of the driver, by topic."""
