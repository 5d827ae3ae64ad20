"""The page /docs: Swagger UI from an installed package, so that it works offline and runs nobody else's script."""

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse, HTMLResponse

PAGE = "/docs"
SCRIPT = "/docs/start.js"
FILES = {
    "/docs/swagger-ui.css": "text/css",
    "/docs/swagger-ui-bundle.js": "text/javascript",
    "/docs/favicon-32x32.png": "image/png",
}
ASSETS = (SCRIPT, *FILES)

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>lgm-guard</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/start.js" defer></script>
</head>
<body><div id="docs"></div></body>
</html>
"""
# No validator: it would send the document to a server of Swagger's.
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null});\n'

router = APIRouter(include_in_schema=False)


@router.get(PAGE)
async def page() -> Response:
    return HTMLResponse(HTML, headers={"content-security-policy": CONTENT_POLICY})


@router.get(SCRIPT)
async def start() -> Response:
    return Response(START, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    media_type = FILES.get(f"{PAGE}/{name}")
    if media_type is None:
        raise HTTPException(404)
    return FileResponse(_installed(name), media_type=media_type)


def _installed(name: str) -> Path:
    return Path(str(resources.files("fastapi_swagger.resources") / name))
