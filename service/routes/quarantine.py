"""What was kept: looking at it, saying what it was, deleting it."""

import re
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import (
    FieldFault,
    InvalidParametersError,
    MalformedBodyError,
    MissingPreconditionError,
    faults_of,
)
from service.forms import read_body
from service.quarantine.quarantine import MOST_LISTED, Quarantine
from service.quarantine.records import NO_NUL, AuditLine, Filter, Item, State
from service.routes.context import runtime_of
from service.schemas import Problem

WITH_ETAG: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": "Of the item's revision.", "schema": {"type": "string"}}}}
}
ETAG = re.compile(r'"([0-9]{1,9})"')

router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"])


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in (404, 503, *statuses)}


class Listing(Filter):
    model_config = ConfigDict(extra="forbid")

    cursor: str | None = Field(default=None, max_length=64, description="A page's next_cursor.")
    limit: int = Field(default=50, ge=1, le=MOST_LISTED, description="Most items in the answer.")


class ListedItems(BaseModel):
    items: tuple[Item, ...] = Field(description="The newest first.")
    next_cursor: str | None = Field(description="Asks for the page behind this one; null on the last.")
    counts: dict[State, int] = Field(description="How many there are in each state, of what else was asked for.")


class Review(BaseModel):
    model_config = ConfigDict(extra="forbid")

    state: State
    reason: str | None = Field(
        default=None, max_length=2000, pattern=NO_NUL, description="For whoever reads the audit."
    )


class Audit(BaseModel):
    lines: tuple[AuditLine, ...] = Field(description="The oldest first.")


@router.get("", summary="Items by filter, and how many there are in each state", responses=refusals(422))
async def list_items(request: Request, asked: Annotated[Listing, Query()]) -> ListedItems:
    _refuse_repeated(request)
    ask = runtime_of(request).ask_quarantine
    page = await ask(Quarantine.list, asked, cursor=asked.cursor, limit=asked.limit)
    counts = await ask(Quarantine.counts, asked.model_copy(update={"state": None}))
    return ListedItems(items=page.items, next_cursor=page.next_cursor, counts=dict(counts))


@router.get("/{item_id}", summary="One item; its ETag is what a review must name", responses=WITH_ETAG | refusals())
async def get_item(request: Request, response: Response, item_id: str) -> Item:
    item = await runtime_of(request).ask_quarantine(Quarantine.get, item_id)
    response.headers["etag"] = _etag(item)
    return item


@router.get(
    "/{item_id}/image",
    summary="Its image, as PNG",
    response_class=Response,
    responses={**refusals(), 200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def get_image(request: Request, item_id: str) -> Response:
    return Response(await runtime_of(request).ask_quarantine(Quarantine.image, item_id), media_type="image/png")


@router.get("/{item_id}/audit", summary="Who did what to it, also once it is gone", responses=refusals())
async def get_audit(request: Request, item_id: str) -> Audit:
    return Audit(lines=await runtime_of(request).ask_quarantine(Quarantine.audit, item_id))


@router.patch(
    "/{item_id}",
    summary="Say what it was",
    responses=WITH_ETAG | refusals(400, 408, 409, 412, 413, 422, 428),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Review"}}},
        }
    },
)
async def review_item(
    request: Request,
    response: Response,
    item_id: str,
    if_match: Annotated[str | None, Header(description="The item's ETag that was decided on, several, or *.")] = None,
) -> Item:
    """Two reviewers never overwrite each other: whoever decided on what has changed since gets 412. With `*` as ETag
    whatever is there is reviewed.
    """
    runtime = runtime_of(request)
    body = await read_body(request.receive, timeout_seconds=runtime.settings.request_timeout_seconds)
    review, revisions = _review(body), _revisions(if_match)
    item = await runtime.ask_quarantine(
        Quarantine.review,
        item_id,
        review.state,
        reviewer=_caller(request),
        reason=review.reason,
        expected_revisions=revisions,
    )
    response.headers["etag"] = _etag(item)
    return item


@router.delete("/{item_id}", summary="Forget it: row and bytes", status_code=204, responses=refusals())
async def delete_item(request: Request, item_id: str) -> Response:
    await runtime_of(request).ask_quarantine(Quarantine.delete, item_id, who=_caller(request))
    return Response(status_code=204)


def _refuse_repeated(request: Request) -> None:
    """Of two values of one name the first would be ignored."""
    names = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [FieldFault(name[:64], "is given more than once") for name, count in names.items() if count > 1]
    if repeated:
        raise InvalidParametersError(*repeated)


def _caller(request: Request) -> str:
    name: str = request.scope["state"]["principal"].name
    return name


def _etag(item: Item) -> str:
    return f'"{item.revision}"'


def _revisions(if_match: str | None) -> set[int] | None:
    """Of the ETags that are listed (RFC 9110, 13.1.1), None for `*`; a weak one, or none of ours, matches nothing."""
    if if_match is None:
        raise MissingPreconditionError("say which revision you decided on: If-Match, with the ETag of the item")
    if if_match.strip() == "*":
        return None
    return {int(found[1]) for member in if_match.split(",") if (found := ETAG.fullmatch(member.strip()))}


def _review(body: bytes) -> Review:
    try:
        return Review.model_validate_json(body)
    except ValidationError as error:
        faults = faults_of(error.errors(include_url=False, include_context=False, include_input=False))
        kind = MalformedBodyError if error.errors()[0]["type"] == "json_invalid" else InvalidParametersError
        raise kind(*faults) from None
