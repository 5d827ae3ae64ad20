"""What is passed on to the page's process of what a browser sends."""

import pytest

from service.dashboard.forwarding import passed_on


@pytest.mark.parametrize(
    ("client", "told"),
    [(("192.0.2.1", 50000), [b"192.0.2.1"]), (("2001:db8::1", 50000), [b"2001:db8::1"]), (None, [])],
)
def test_the_page_learns_who_asks_from_us_alone(client, told):
    headers = [(b"host", b"localhost"), (b"x-forwarded-for", b"203.0.113.9"), (b"forwarded", b"for=203.0.113.9")]
    found = passed_on({"headers": headers, "scheme": "http", "client": client})
    assert [value for name, value in found if name == b"x-forwarded-for"] == told
    assert b"forwarded" not in dict(found)
    assert dict(found)[b"host"] == b"localhost"
