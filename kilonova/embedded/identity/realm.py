"""The parts of the identity service that its HTTP handlers work with."""

from __future__ import annotations

from dataclasses import dataclass

from kilonova.domain.clock import Clock
from kilonova.embedded.identity.authentication import Authenticator
from kilonova.embedded.identity.passwords import Passwords
from kilonova.embedded.identity.store import IdentityStore
from kilonova.embedded.identity.verification import Verifier


@dataclass(frozen=True)
class Realm:
    store: IdentityStore
    verifier: Verifier
    authenticator: Authenticator
    passwords: Passwords
    clock: Clock
