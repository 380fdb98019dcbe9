"""The HTTP API of the identity service: one file per resource."""
