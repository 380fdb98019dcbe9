"""Images and volumes: make an image of a volume's data, and give a volume the data of an image."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.domain.operation import Failure
from kilonova.embedded.volume import attachments, messages, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import (
    COPY_LIMIT,
    READS,
    Whereabouts,
    chunks,
    file_of,
    image_metadata,
    look,
    remove,
    tell_user,
)
from kilonova.embedded.volume.states import VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.services.image import NewImage
from kilonova.storage.pool import FromImage, FromVolume, ImageFormat

log = structlog.get_logger(__name__)

S = VolumeStatus
REIMAGED = "volume-reimaged"
CREATE_IMAGE = "create image"
"""The step of an upload after which the image is there, without data."""


class UploadVolume(msgspec.Struct, frozen=True, kw_only=True):
    """image: as it is to be, raw or qcow2. in_use: also while servers use the volume."""

    image: NewImage
    in_use: bool = False


class ReimageVolume(msgspec.Struct, frozen=True):
    """reserved: also a volume that a server has reserved, which is then told."""

    image_id: str
    reserved: bool = False


class Users(msgspec.Struct, frozen=True):
    servers: tuple[str, ...]


class NewData(msgspec.Struct, frozen=True):
    """Of the image that was written. metadata: as the volume tells it."""

    metadata: dict[str, str]


def _begin_upload(tx: Tx, run: Run[UploadVolume]) -> None:
    """Spec: EMV-31."""
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    if volume.encrypted:
        raise InvalidVolume(volume.id, "is encrypted, and its data are useless without its key")
    if run.request.image.disk_format not in ("raw", "qcow2"):
        raise InvalidInput(f"Images of volumes are raw or qcow2, not {run.request.image.disk_format}.")
    allowed = (S.AVAILABLE, S.IN_USE) if run.request.in_use else (S.AVAILABLE,)
    volumes.begin(tx.conn, volume.id, allowed, S.UPLOADING, tx.now)


async def _create_image(environment: VolumeEnvironment, run: Run[UploadVolume]) -> None:
    await environment.images.create(run.request.image)


async def _delete_image(environment: VolumeEnvironment, run: Run[UploadVolume]) -> None:
    await environment.images.delete(run.request.image.id)


async def _upload(environment: VolumeEnvironment, run: Run[UploadVolume]) -> None:
    there, image, staged = run.output(Whereabouts), run.request.image, environment.staged(run.id)
    staged.parent.mkdir(parents=True, exist_ok=True)
    try:
        form: ImageFormat = "raw" if image.disk_format == "raw" else "qcow2"
        await environment.pool(there.host).write_image(FromVolume(there.name_id), staged, form)
        await environment.images.upload(image.id, chunks(staged))
    finally:
        await remove(staged)


async def _tidy(environment: VolumeEnvironment, run: Run[UploadVolume]) -> None:
    await remove(environment.staged(run.id))


def _uploaded(tx: Tx, run: Run[UploadVolume]) -> None:
    volumes.finish(tx.conn, run.subject, S.UPLOADING, tx.now)


def _not_uploaded(tx: Tx, run: Run[UploadVolume], failure: Failure) -> None:
    volumes.finish(tx.conn, run.subject, S.UPLOADING, tx.now)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


UPLOAD = Operation(
    name="upload volume",
    about="volume",
    request=UploadVolume,
    begins=_begin_upload,
    steps=(
        Record("look", look, undo=READS),
        Here(CREATE_IMAGE, _create_image, undo=_delete_image, undo_owed=True),
        Here("upload", _upload, undo=_tidy, timeout=COPY_LIMIT),
    ),
    ends=_uploaded,
    fails=_not_uploaded,
)


def _begin_reimage(tx: Tx, run: Run[ReimageVolume]) -> None:
    """Spec: EMV-38."""
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    held = attachments.of_volume(tx.conn, volume.id)
    if any(one.connector is not None for one in held):
        raise InvalidVolume(volume.id, "is connected")
    allowed = (S.AVAILABLE, S.ERROR, S.RESERVED) if run.request.reserved else (S.AVAILABLE, S.ERROR)
    volumes.begin(tx.conn, volume.id, allowed, S.DOWNLOADING, tx.now)


def _find_users(tx: Tx, run: Run[ReimageVolume]) -> Users:
    found = attachments.of_volume(tx.conn, run.subject)
    return Users(tuple(sorted({one.instance_id for one in found if one.instance_id})))


async def _promise(_environment: VolumeEnvironment, _run: Run[ReimageVolume]) -> None:
    """Whatever becomes of it, the servers that wait are told: its undo does."""


async def _tell_failed(environment: VolumeEnvironment, run: Run[ReimageVolume]) -> None:
    await _tell(environment, run, "failed")


async def _tell_done(environment: VolumeEnvironment, run: Run[ReimageVolume]) -> None:
    await _tell(environment, run, "completed")


async def _tell(environment: VolumeEnvironment, run: Run[ReimageVolume], status: str) -> None:
    for server in run.output(Users).servers:
        try:
            await environment.compute.tell(REIMAGED, server, volume=run.subject, status=status)
        except (NotFound, InvalidInput) as error:
            log.info("a server does not wait for its volume", server=server, volume=run.subject, why=str(error))


async def _replace(environment: VolumeEnvironment, run: Run[ReimageVolume]) -> NewData:
    """Spec: EMV-39."""
    there, staged = run.output(Whereabouts), environment.staged(run.id)
    image = await environment.images.show(None, run.request.image_id)
    if image.min_disk > there.size:
        raise InvalidInput(f"Image {image.id} needs {image.min_disk} GiB; volume {run.subject} has {there.size}.")
    try:
        source = FromImage(await file_of(environment.images, image.id, staged), image.disk_format)
        passphrase = environment.passphrase(there.key_id)
        await environment.pool(there.host).replace(there.name_id, source, passphrase=passphrase)
    finally:
        await remove(staged)
    return NewData(image_metadata(image))


def _reimaged(tx: Tx, run: Run[ReimageVolume]) -> None:
    volumes.finish(tx.conn, run.subject, S.DOWNLOADING, tx.now, bootable=True,
                   image_metadata=run.output(NewData).metadata)


def _nothing(_tx: Tx, _run: Run[ReimageVolume]) -> None:
    return None


def _not_reimaged(tx: Tx, run: Run[ReimageVolume], failure: Failure) -> None:
    """An image that was refused leaves the data as they were."""
    if failure.status == InvalidInput.status:
        volumes.finish(tx.conn, run.subject, S.DOWNLOADING, tx.now)
    else:
        volumes.move(tx.conn, run.subject, [S.DOWNLOADING], S.ERROR, tx.now, previous_status=None)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


REIMAGE = Operation(
    name="reimage volume",
    about="volume",
    request=ReimageVolume,
    begins=_begin_reimage,
    no_return="tell servers",
    steps=(
        Record("look", look, undo=READS),
        Record("find servers", _find_users, undo=READS),
        Here("promise an answer", _promise, undo=_tell_failed, undo_owed=True),
        Here("replace data", _replace, undo=NoUndo("what the volume held is not kept"), recorded=_reimaged,
             timeout=COPY_LIMIT),
        Here("tell servers", _tell_done, undo=NoUndo("they were told"), owed=True),
    ),
    ends=_nothing,
    fails=_not_reimaged,
)
