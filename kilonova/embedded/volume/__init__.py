"""The embedded volume service (OpenStack: Cinder)."""
