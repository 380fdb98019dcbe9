"""Every schema of an installation: those of the compute service, of its agents, and of the embedded services."""

from __future__ import annotations

from kilonova.db.schema import API, CELL
from kilonova.db.upgrade import Schema
from kilonova.embedded.identity.schema import metadata as identity_metadata
from kilonova.embedded.image.schema import metadata as image_metadata
from kilonova.embedded.network.schema import metadata as network_metadata
from kilonova.engine.host import host_metadata

HOST = Schema("host", host_metadata, ("0001",))
"""What an agent remembers of its commands, on its host."""

IDENTITY = Schema("identity", identity_metadata, ("0001",))
IMAGE = Schema("image", image_metadata, ("0001",))
NETWORK = Schema("network", network_metadata, ("0001",))

SCHEMAS = (API, CELL, HOST, IDENTITY, IMAGE, NETWORK)
