"""What every test can ask for."""

from servers import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
