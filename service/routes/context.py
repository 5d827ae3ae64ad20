"""How a route reaches what the process holds."""

from typing import cast

from fastapi import Request

from service.runtime import Runtime


def runtime_of(request: Request) -> Runtime:
    return cast(Runtime, request.app.state.runtime)
