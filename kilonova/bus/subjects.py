"""The names of subjects, so that nobody writes them by hand and permissions cover exactly what is used."""

from __future__ import annotations

from urllib.parse import quote, unquote

REPLIES = "_INBOX"
"""Root of the subjects on which replies arrive; a reply never goes anywhere else."""


def host_token(host: str) -> str:
    """A host's name as one token of a subject.

    The names of most hosts are their own tokens. What would split a subject or match others (dots, wildcards,
    white space) is escaped: the permissions of `web` must not cover `web.example.org`.
    """
    return quote(host, safe="").replace(".", "%2E").replace("~", "%7E")


def to_host(host: str, what: str) -> str:
    """Where an agent hears conductors: `command` and `query`."""
    return f"kn.host.{host_token(host)}.{what}"


def from_host(host: str, what: str) -> str:
    """Where an agent speaks to conductors: `report` and `event`."""
    return f"kn.from.{host_token(host)}.{what}"


def from_any_host(what: str) -> str:
    """What `from_host` of every host fits."""
    return f"kn.from.*.{what}"


def speaker(subject: str) -> str:
    """The host that a message of `from_host` is from.

    The bus lets each host speak only on subjects of its own, so this, and not what the message says, tells who
    sent it.
    """
    return unquote(subject.split(".")[2])
