"""Kilonova: a compute service that speaks the OpenStack Compute API."""

__version__ = "0.1.0"
