"""Pre-cache images: fetch images to the hosts of an aggregate before a server needs them.

One operation takes some of the hosts, one after the other: it fetches to the first and is followed by one for the rest,
also if that host is down. What became of each image on each host stands in the journal, under the aggregate's UUID.
"""

from __future__ import annotations

from uuid import uuid4

import msgspec
import structlog

from kilonova.agent.steps.images import CACHE, Cached, CacheImages, Outcome
from kilonova.db import services
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import ImageNotFound, ServiceUnavailable
from kilonova.domain.image import Image
from kilonova.domain.operation import Failure
from kilonova.engine import submit
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment

log = structlog.get_logger(__name__)

FETCH_LIMIT = 3600.0
"""Seconds that one host may take."""
DOWN_TIME = 60.0
"""Seconds of silence after which nothing is asked of a host."""
STAYS = NoUndo("an image that is there already does no harm, and ages")


class PrecacheImages(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts, of which the first is to have the images now, and ids of images."""

    hosts: tuple[str, ...]
    images: tuple[str, ...]


class Described(msgspec.Struct, frozen=True):
    """Images to be fetched, and ids of those that the image service does not have."""

    images: tuple[Image, ...]
    missing: tuple[str, ...]


async def _describe(env: Environment, run: Run[PrecacheImages]) -> Described:
    """Raises ServiceUnavailable: the host is down."""
    host = run.request.hosts[0]
    known = await env.database.read(
        lambda conn: services.all_services(conn, binary=services.COMPUTE, host=host)
    )
    if not any(one.up(env.clock.now(), DOWN_TIME) for one in known):
        raise ServiceUnavailable(f"Host {host} is down.")
    images: list[Image] = []
    missing: list[str] = []
    for image_id in run.request.images:
        try:
            images.append(await env.images.show(None, image_id))
        except ImageNotFound:
            missing.append(image_id)
    return Described(tuple(images), tuple(missing))


def _fetched(tx: Tx, run: Run[PrecacheImages]) -> None:
    missing = dict.fromkeys(run.output(Described).missing, Outcome.ERROR)
    outcomes = {**run.output(Cached).outcomes, **missing}
    log.info("images fetched beforehand", aggregate=run.subject, host=run.request.hosts[0], images=outcomes)
    _go_on(tx, run)


def _failed(tx: Tx, run: Run[PrecacheImages], failure: Failure) -> None:
    host, reason = run.request.hosts[0], failure.message
    log.warning("images not fetched beforehand", aggregate=run.subject, host=host, reason=reason)
    if not failure.cancelled:
        _go_on(tx, run)


def _go_on(tx: Tx, run: Run[PrecacheImages]) -> None:
    """With the next host, if there is one."""
    rest = run.request.hosts[1:]
    if rest:
        request = PrecacheImages(hosts=rest, images=run.request.images)
        submit.submit(
            tx, cell_journal, PRECACHE_IMAGES, run.subject, request, run.record.asker, operation_id=str(uuid4())
        )


PRECACHE_IMAGES = Operation(
    name="precache-images",
    request=PrecacheImages,
    exclusive=False,
    about="aggregate",
    steps=(
        Here("describe images", _describe, undo=STAYS, pause=lambda _attempt: 3.0),
        OnHost("fetch images", lambda run: run.request.hosts[0], CACHE,
               lambda run: CacheImages(images=run.output(Described).images), undo=STAYS, timeout=FETCH_LIMIT),
    ),
    ends=_fetched,
    fails=_failed,
)
