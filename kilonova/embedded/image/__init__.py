"""The image service of one machine: a subset of the Image API v2 over files and a database."""

from kilonova.embedded.image.import_rules import ImportRules
from kilonova.embedded.image.records import Limits
from kilonova.embedded.image.service import EmbeddedImage

__all__ = ["EmbeddedImage", "ImportRules", "Limits"]
