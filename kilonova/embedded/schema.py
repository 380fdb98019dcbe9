"""Every schema of an installation: those of the compute service, of its agents, and of the embedded services."""

from __future__ import annotations

from kilonova.db.schema import API, CELL
from kilonova.db.upgrade import Schema
from kilonova.embedded.identity.schema import IDENTITY
from kilonova.embedded.image.schema import IMAGE
from kilonova.embedded.network.agent_schema import NETWORK
from kilonova.embedded.volume.schema import VOLUME
from kilonova.engine.host import host_metadata

__all__ = ["API", "CELL", "HOST", "IDENTITY", "IMAGE", "NETWORK", "SCHEMAS", "VOLUME"]

HOST = Schema("host", host_metadata, ("0001",))
"""What an agent remembers of its commands, on its host."""

SCHEMAS = (API, CELL, HOST, IDENTITY, IMAGE, NETWORK, VOLUME)
