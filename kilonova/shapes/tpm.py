"""The virtual TPM of a guest."""

from __future__ import annotations

from typing import Literal

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, word

Version = Literal["1.2", "2.0"]
Model = Literal["tpm-tis", "tpm-crb"]
Security = Literal["user", "host", "deployment"]

_VERSION: Parse[Version] = word("1.2", "2.0")
_MODEL: Parse[Model] = word("tpm-tis", "tpm-crb")
_SECURITY: Parse[Security] = word("user", "host", "deployment")


class Tpm(msgspec.Struct, frozen=True, kw_only=True):
    """A TPM.

    Args:
        security: who may use the secret that its state is encrypted with.
    """

    version: Version = "2.0"
    model: Model = "tpm-tis"
    security: Security = "user"

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        return {
            f"COMPUTE_SECURITY_TPM_{self.version.replace('.', '_')}": "hw:tpm_version",
            f"COMPUTE_SECURITY_TPM_{self.model.removeprefix('tpm-').upper()}": "hw:tpm_model",
            f"COMPUTE_SECURITY_TPM_SECRET_SECURITY_{self.security.upper()}": "hw:tpm_secret_security",
        }


def tpm_shape(asked: Asked) -> Tpm | None:
    """None without a version. Raises InvalidInput: a wrong value, or a contradiction."""
    version = asked.agreed("hw:tpm_version", _VERSION)
    model = asked.agreed("hw:tpm_model", _MODEL)
    security = asked.of_flavor("hw:tpm_secret_security", _SECURITY)
    if version is None:
        if model is not None:
            raise InvalidInput("A model of a TPM is asked for without its version.")
        return None
    if (version, model) == ("1.2", "tpm-crb"):
        raise InvalidInput("A TPM of version 1.2 cannot have the model tpm-crb.")
    return Tpm(version=version, model=model or "tpm-tis", security=security or "user")
