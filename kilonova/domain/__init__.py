"""Plain types of the compute domain. Imports nothing else of the package."""
