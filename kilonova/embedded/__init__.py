"""The one-machine services: identity, image, network, placement, each with its HTTP API."""
