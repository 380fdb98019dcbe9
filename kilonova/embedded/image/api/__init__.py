"""The HTTP calls of the image service, one file per group of them."""
