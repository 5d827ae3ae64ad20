"""Who begins when."""

import asyncio

from service.turns import FULL, MAX_LATE, PIECE, REQUEST, Turns

DATA = b"POST / HTTP/1.1\r\n"
PROBE = b"GET /readyz HTTP/1.1\r\n"


def test_a_turn_has_an_end_and_probes_do_not_wait_for_it():
    async def scenario() -> None:
        turns = Turns()
        begun = [turns.begin(DATA) for _ in range(2 * FULL)]
        assert begun == [True] * (FULL // PIECE) + [False] * (2 * FULL - FULL // PIECE)
        assert turns.begin(PROBE)
        await asyncio.sleep(0)
        assert turns.begin(DATA)

    asyncio.run(scenario())


def test_requests_fill_a_turn_sooner():
    async def scenario() -> None:
        turns = Turns()
        num = 0
        while turns.begin(DATA):
            turns.let_in()
            num += 1
        assert num == turns.num_requests == FULL // (PIECE + REQUEST)
        for _ in range(3):
            await asyncio.sleep(0)
        assert turns.num_requests == 0

    asyncio.run(scenario())


def test_who_came_first_begins_first_and_late_ones_beside_them():
    async def scenario() -> list[list[tuple[str, int]]]:
        turns, log = Turns(), []
        while turns.begin(DATA):
            pass

        def request(number: int) -> None:
            log.append(("request", number))
            turns.let_in()

        for number in range(20):
            turns.wait(lambda number=number: request(number), is_request=True)
            turns.wait_for_no(lambda number=number: log.append(("late", number)))
        assert turns.num_requests == 20
        seen = []
        while len(log) < 40:
            before = len(log)
            assert not turns.begin(DATA)  # others come first
            await asyncio.sleep(0)
            seen.append(log[before:])
        await asyncio.sleep(0)
        assert turns.begin(DATA)
        return seen

    seen = asyncio.run(scenario())
    for kind, most in (("request", FULL // (PIECE + REQUEST)), ("late", MAX_LATE)):
        found = [sum(begun == kind for begun, _ in turn) for turn in seen]
        assert found == [min(most, max(0, 20 - most * past)) for past in range(len(seen))]
    assert sorted(number for turn in seen for _, number in turn) == [number for number in range(20) for _ in "ab"]
    for kind in ("request", "late"):
        assert [number for turn in seen for found, number in turn if found == kind] == list(range(20))
