"""Importing this before anything else imports structlog loads it without rich.

structlog loads rich wherever it finds it, to show errors on terminals in colour, with the local variables of each call:
secrets among them. Commands that print tables need rich, but a process that serves does not, and would keep it.
"""

from __future__ import annotations

import sys

_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # to Python: there is none
try:
    import structlog  # noqa: F401
finally:
    del sys.modules["rich"]
    if _rich is not None:
        sys.modules["rich"] = _rich
