"""The HTTP calls of the volume service, one file per group of them."""
