"""Who may see, use and change which image. Spec: EMI-05, EMG-11 to EMG-14."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, ImageNotFound
from kilonova.embedded.image import schema
from kilonova.embedded.image.records import ImageRecord, MemberStatus, Visibility

WRITERS = frozenset({"admin", "manager", "member", "service"})
"""Roles that may make and change images; a reader only reads."""


def owns(context: RequestContext, record: ImageRecord) -> bool:
    return context.project_id is not None and context.project_id == record.owner


def check_visible(context: RequestContext, record: ImageRecord, *, member: bool) -> None:
    """Raises ImageNotFound if the caller may not know of the image. `member`: its project is a member."""
    visible = (
        context.is_admin
        or owns(context, record)
        or record.visibility in (Visibility.PUBLIC, Visibility.COMMUNITY)
        or (record.visibility is Visibility.SHARED and member)
    )
    if not visible:
        raise ImageNotFound(record.id)


def check_writer(context: RequestContext) -> None:
    """Raises Forbidden for a caller whose role only reads."""
    if not WRITERS.intersection(context.roles):
        raise Forbidden("You are not authorized to complete this action: role member is needed.")


def check_change(context: RequestContext, record: ImageRecord) -> None:
    """Raises Forbidden if the image is visible to the caller but not its own."""
    check_writer(context)
    if not context.is_admin and not owns(context, record):
        raise Forbidden(f"You are not permitted to change image {record.id}: it belongs to another project.")


def check_visibility(context: RequestContext, wanted: Visibility) -> None:
    """Only administrators publish to everyone. Spec: EMG-12."""
    if wanted is Visibility.PUBLIC and not context.is_admin:
        raise Forbidden("You are not authorized to make an image public.")


def listed(context: RequestContext, visibility: str | None, member_status: str) -> sa.ColumnElement[bool]:
    """The condition under which an image is in the caller's list. Spec: EMG-12, EMG-14.

    Args:
        visibility: one of the values, `all`, or None for the default list.
        member_status: which shared images count: a status, or `all`.
    """
    image = schema.images.c
    own = image.owner == context.project_id if context.project_id else sa.false()
    shared = image.visibility == Visibility.SHARED
    shared_with_caller = sa.and_(shared, _member(context, member_status))
    if visibility is None:
        return sa.or_(own, image.visibility == Visibility.PUBLIC, shared_with_caller)
    if visibility == "all":
        if context.is_admin:
            return sa.true()
        return sa.or_(own, image.visibility.in_([Visibility.PUBLIC, Visibility.COMMUNITY]), shared_with_caller)
    wanted = image.visibility == Visibility(visibility)
    if visibility == "private" and not context.is_admin:
        return sa.and_(wanted, own)
    if visibility == "shared" and not context.is_admin:
        return sa.or_(sa.and_(wanted, own), shared_with_caller)
    return wanted


def _member(context: RequestContext, member_status: str) -> sa.ColumnElement[bool]:
    if context.project_id is None:
        return sa.false()
    member = schema.members.c
    matching = sa.select(member.image_id).where(member.member_id == context.project_id)
    if member_status != "all":
        matching = matching.where(member.status == MemberStatus(member_status))
    return schema.images.c.id.in_(matching)
