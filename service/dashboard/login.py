"""The one page that is no NiceGUI page: a form that takes a key, without a script."""

from html import escape

from starlette.responses import HTMLResponse

from service.dashboard.options import PREFIX

LOGIN, LOGOUT, STATIC = f"{PREFIX}/login", f"{PREFIX}/logout", f"{PREFIX}/static/"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · lgm-guard</title>
<link rel="icon" href="{static}icon.svg">
<link rel="stylesheet" href="{static}dashboard.css">
</head>
<body class="bare">
<main class="login">
<h1><img src="{static}icon.svg" alt="" width="28" height="28">lgm-guard</h1>
{body}
</main>
</body>
</html>
"""

FORM = """<form method="post" action="{action}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false"
 aria-describedby="hint{described}">
{fault}
<p id="hint" class="quiet">The key stays with this server, for twelve hours or until you log out.</p>
<button type="submit" class="primary">Log in</button>
</form>"""


def login_page(fault: str = "", *, status: int = 200) -> HTMLResponse:
    told = f'<p id="fault" class="fault" role="alert">{escape(fault)}</p>' if fault else ""
    form = FORM.format(action=LOGIN, fault=told, described=" fault" if fault else "")
    return HTMLResponse(_page("Log in", form), status)


def message_page(title: str, text: str, *, status: int) -> HTMLResponse:
    body = f'<h2>{escape(title)}</h2><p>{escape(text)}</p><p><a href="{PREFIX}/">Try again</a></p>'
    return HTMLResponse(_page(title, body), status)


def _page(title: str, body: str) -> str:
    return PAGE.format(title=escape(title), static=STATIC, body=body)
