"""`python -m kilonova`."""

from __future__ import annotations

from kilonova.cli.main import main

if __name__ == "__main__":
    main()
