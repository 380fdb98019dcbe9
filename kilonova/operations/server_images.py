"""The images that are made of servers: how they are described, and how one that is not to be goes again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import structlog

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound, InvalidInput, KilonovaError, Retryable, ServiceUnavailable
from kilonova.domain.instance import Instance
from kilonova.domain.operation import EntryState, OperationRecord
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.options import OperationOptions
from kilonova.services.image import NewImage
from kilonova.shapes.resources import is_volume_backed

log = structlog.get_logger(__name__)

CREATE_IMAGE = "create image"
"""Name of the step that makes the record of the image, in every operation that has one."""
LONGEST_NAME = 255
SIGNATURE = "img_signature"
"""How the properties begin that are true of the bytes of one image only."""


class MakesImage(Protocol):
    """A request that leads to an image."""

    @property
    def image(self) -> NewImage: ...


def describe_image(
    context: RequestContext, instance: Instance, options: OperationOptions, *, image_id: str, name: str, kind: str,
    metadata: Mapping[str, str], owner: str | None = None,
) -> NewImage:
    """The image of a server's disk.

    Args:
        kind: its image_type: snapshot, backup. metadata: properties that the caller gives it;
            a snapshot may be called something else, backups are rotated by what they are.
        owner: project that has it; None for the caller's.

    Raises:
        InvalidInput: the server has no disk of its own. Spec: EMG-24, EMG-32, EMG-35.
    """
    if instance.image is None:
        raise InvalidInput(f"Instance {instance.uuid} has no disk that an image could be made of.")
    left_out = options.non_inheritable_image_properties
    inherited = {
        key: value for key, value in instance.image.properties.items()
        if key not in left_out and not key.startswith(SIGNATURE)
    }
    own = {
        "base_image_ref": instance.image_ref, "boot_roles": ",".join(context.roles), "image_location": "snapshot",
        "image_state": "available", "instance_uuid": instance.uuid, "owner_id": instance.project_id,
        "user_id": context.user_id,
    }
    if kind == "backup":
        own["image_type"] = kind
    volume_backed = is_volume_backed(instance.block_devices)
    owner = owner or context.project_id or instance.project_id
    return NewImage(
        id=image_id, name=name[:LONGEST_NAME], owner=owner,
        member=instance.project_id if owner != instance.project_id else "",
        min_disk=max(instance.image.min_disk, 0 if volume_backed else instance.flavor.root_gib),
        min_ram=instance.image.min_ram,
        properties={**inherited, "image_type": kind, **metadata, **own},
    )


def is_image_made(operation: OperationRecord) -> bool:
    """Whether the record of the image exists."""
    return any(e.state is EntryState.DONE for e in operation.entries if e.step == CREATE_IMAGE and not e.undo)


async def create_image(env: Environment, run: Run[Any]) -> None:
    """A step: the record of the image, without data, under the id that its user was told. Spec: SNP-01."""
    request: MakesImage = run.request
    await env.images.create(request.image)


async def find_image(env: Environment, run: Run[Any]) -> None:
    """A step: the record is still there. Raises ImageNotFound: its user deleted it. Spec: SNP-18."""
    request: MakesImage = run.request
    await env.images.show(None, request.image.id)


async def delete_image(env: Environment, run: Run[Any]) -> None:
    """The undo of that step, and of all that was done for the image. One that is complete is kept if the server was
    deleted meanwhile. Spec: SNP-04, SNP-05, SNP-16, SNP-19, SNP-23, FND-27, FND-29, INI-114."""
    request: MakesImage = run.request
    failure = run.record.failure
    if failure is not None and failure.cancelled and await _is_active(env, request.image.id):
        return
    await remove_image(env, run.subject, request.image.id)


async def remove_image(env: Environment, server: str, image_id: str) -> None:
    """Delete an image that is of no more use. A refusal is worth a warning and nothing else; raises
    ServiceUnavailable if the image service is away. Spec: FND-28, PWR-21."""
    try:
        await env.images.delete(image_id)
    except (Retryable, ServiceUnavailable):
        raise
    except KilonovaError as error:
        log.warning("image left over", instance=server, image=image_id, error=str(error))


async def _is_active(env: Environment, image_id: str) -> bool:
    try:
        return (await env.images.show(None, image_id)).status == "active"
    except ImageNotFound:
        return False
