"""Whom a key belongs to, and what is told of the settings."""

import pytest

from service.routes.whoami import TOLD
from service.settings import Settings


def test_without_keys_everybody_is_admin_and_nameless(client):
    assert client.get("/v1/whoami").json() == {"name": None, "role": "admin"}


def test_the_limits_are_told_and_nothing_that_leads_elsewhere(client, settings):
    told = client.get("/v1/about").json()["settings"]
    assert told["max_batch_size"] == settings.max_batch_size
    assert set(told) == set(TOLD)
    assert not {name for name in told if "path" in str(Settings.model_fields[name].annotation).lower()}
    assert not {name for name in told for word in ("key", "url", "database", "store") if word in name.split("_")} - {
        "max_in_flight_per_key"
    }


@pytest.mark.parametrize("path", ["/dashboardx", "/dash", "/v1/dashboard"])
def test_only_what_is_below_the_page_is_passed_on(client, path):
    assert client.get(path).status_code == 404


def test_the_page_can_be_left_out(make_client):
    assert make_client(dashboard=False).get("/dashboard/").status_code == 404
