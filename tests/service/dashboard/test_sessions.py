import asyncio

import pytest

from service.client.answers import Problem
from service.client.errors import ProblemError, UnreachableError
from service.dashboard import sessions
from service.dashboard.sessions import Session
from service.dashboard.upstream import Identity

REVIEWER = Identity(name="ann", role="review")
PREDICTOR = Identity(name="ann", role="predict")


class Sessions(sessions.Sessions):
    """Beside a service that gives these answers in turn."""

    def __init__(self, *answers: Identity | Exception):
        super().__init__(self._tell)
        self.answers = list(answers)

    async def _tell(self, key: str | None) -> Identity:
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def logged_in(self) -> Session:
        session = self.find(self.open("key", REVIEWER))
        assert session is not None
        return session


def refusal(status: int) -> ProblemError:
    texts = dict.fromkeys(("type", "title", "detail", "error", "request_id"), "")
    return ProblemError(Problem(**texts, status=status, errors=()))


@pytest.fixture
def forgetful(monkeypatch):
    """Every answer of the service is old at once."""
    monkeypatch.setattr(sessions, "KNOWN_SECONDS", 0.0)


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


def test_who_logs_in_again_and_again_ends_its_own_oldest_session_alone(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_OF_A_NAME", 2)
    held = Sessions()
    cookies = [held.open("key", Identity(name=name, role="review")) for name in ("ann", "bob", "bob", "bob", "bob")]
    assert [held.find(cookie) is not None for cookie in cookies] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("names", "ended"),
    [
        (("ann", "bob", "bob", "bob"), 1),  # the newcomer has the most
        (("ann", "bob", "bob", "eve"), 1),  # somebody else has
        (("ann", "bob", "eve", "bob"), 1),  # as many as the others: its own
        (("ann", "bob", "eve", "dan"), 0),  # it has none
    ],
)
def test_where_the_house_is_full_who_has_the_most_makes_room(monkeypatch, names, ended):
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)
    held = Sessions()
    cookies = [held.open("key", Identity(name=name, role="review")) for name in names]
    assert [number for number, cookie in enumerate(cookies) if held.find(cookie) is None] == [ended]


def test_roles_include_those_before_them():
    assert [Identity(name=None, role=role).may("review") for role in ("predict", "review", "admin")] == [
        False,
        True,
        True,
    ]


@pytest.mark.usefixtures("forgetful")
def test_a_key_that_is_taken_no_more_ends_its_session():
    held = Sessions(REVIEWER, refusal(401))
    session = held.logged_in()
    assert asyncio.run(held.confirm(session))
    assert not asyncio.run(held.confirm(session))
    assert not held.is_open(session)


@pytest.mark.usefixtures("forgetful")
def test_a_role_is_the_one_that_the_key_has_by_now():
    held = Sessions(PREDICTOR)
    session = held.logged_in()
    assert asyncio.run(held.confirm(session))
    assert not session.identity.may("review")


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("trouble", [UnreachableError("gone"), refusal(503), refusal(429)])
def test_a_service_that_does_not_say_ends_no_session_and_vouches_for_none(trouble):
    held = Sessions(trouble, REVIEWER)
    session = held.logged_in()
    with pytest.raises(type(trouble)):
        asyncio.run(held.confirm(session))
    assert asyncio.run(held.confirm(session))


def test_what_a_page_asks_for_at_once_costs_one_question():
    held = Sessions(REVIEWER)
    session = held.logged_in()
    session.asked -= sessions.KNOWN_SECONDS

    async def load() -> list[bool]:
        return await asyncio.gather(*(held.confirm(session) for _ in range(20)))

    assert asyncio.run(load()) == [True] * 20
    assert held.answers == []
