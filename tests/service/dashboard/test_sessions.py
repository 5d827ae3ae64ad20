from service.dashboard import sessions
from service.dashboard.sessions import Sessions
from service.dashboard.upstream import Identity

REVIEWER = Identity(name="ann", role="review")


def test_a_cookie_finds_its_session_and_holds_no_key():
    held = Sessions()
    cookie = held.open("lgm_secret", REVIEWER)
    assert "lgm_secret" not in cookie
    found = held.find(cookie)
    assert found is not None
    assert (found.key, found.identity) == ("lgm_secret", REVIEWER)
    assert held.is_open(found)


def test_a_changed_or_foreign_cookie_finds_nothing():
    held = Sessions()
    cookie = held.open("key", REVIEWER)
    for place in (0, len(cookie) // 2, -2):  # the last character holds bits that mean nothing
        changed = "A" if cookie[place] != "A" else "B"
        assert held.find(cookie[:place] + changed + cookie[place:][1:]) is None
    assert held.find(cookie.split(".")[0]) is None
    assert held.find("") is None
    assert Sessions().find(cookie) is None


def test_logging_out_ends_it_also_for_tabs_that_are_open():
    held = Sessions()
    cookie = held.open("key", REVIEWER)
    session = held.find(cookie)
    held.close(session)
    assert held.find(cookie) is None
    assert not held.is_open(session)


def test_it_ends_by_itself(monkeypatch):
    held = Sessions()
    session = held.find(held.open("key", REVIEWER))
    monkeypatch.setattr(sessions, "LIFETIME_SECONDS", 0)
    assert not held.is_open(session)


def test_the_oldest_goes_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    held = Sessions()
    first, *others = [held.open(str(number), REVIEWER) for number in range(3)]
    assert held.find(first) is None
    assert all(held.find(cookie) is not None for cookie in others)


def test_roles_include_those_before_them():
    assert [Identity(name=None, role=role).may("review") for role in ("predict", "review", "admin")] == [
        False,
        True,
        True,
    ]
