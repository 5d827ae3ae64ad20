"""What reviewers see and do, over each kind of database."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from service.errors import (
    ChangedMeanwhileError,
    InvalidParametersError,
    QuarantineUnavailableError,
    SettingsError,
    TransitionError,
    UnknownItemError,
)
from service.quarantine import Filter, State, Why
from service.quarantine.database import HEAD, MIGRATIONS, Database
from service.quarantine.files import write_image
from service.quarantine.keeping import Kept, keep
from service.quarantine.quarantine import Quarantine
from service.quarantine.records import TRANSITIONS
from service.quarantine.store import Store
from tests.service.quarantine.conftest import NOON, made_item, noise


def review(quarantine: Quarantine, item, state: State, revision: int | None = None):
    return quarantine.review(
        item.id, state, reviewer="ann", reason="seen", expected_revisions={revision or item.revision}
    )


def test_what_was_kept_comes_back_as_it_was(quarantine, kept):
    image = noise(5)
    item = kept(image)
    assert quarantine.get(item.id) == item
    np.testing.assert_array_equal(quarantine.pixels(item.id), image)
    assert quarantine.image(item.id).startswith(b"\x89PNG")


def test_long_and_odd_labels_are_kept_too(quarantine, kept):
    item = kept(label="ü'; --" * 100, model_name="m" * 1000)
    assert quarantine.get(item.id) == item
    assert quarantine.list(Filter(label="ü'; --")).items == ()


def test_no_other_user_of_the_machine_may_read_what_is_kept(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/state/rows.sqlite")
    keep(database, Store(str(tmp_path / "state" / "files")), [Kept(made_item(noise(1)), write_image(noise(1)))])
    found = [path for path in (tmp_path / "state").rglob("*")]
    assert len(found) >= 4
    assert {path.name: path.stat().st_mode & 0o077 for path in found} == {path.name: 0 for path in found}
    database.close()


def test_scores_without_end_are_kept_too(quarantine, kept):
    evidence = {"likelihood": {"score": float("inf"), "p_value": 0.01}}
    assert quarantine.get(kept(evidence=evidence).id).evidence["likelihood"].score == float("inf")


def test_pages_go_through_everything_once_while_more_comes_in(quarantine, kept):
    there = [kept(minutes=minute).id for minute in range(7)]
    found, cursor = [], None
    for number in range(4):
        page = quarantine.list(cursor=cursor, limit=2)
        found += [item.id for item in page.items]
        cursor = page.next_cursor
        kept(minutes=100 + number)
    assert found == there[::-1]
    assert cursor is None


def test_every_filter_chooses(quarantine, kept):
    one = kept(noise(1), minutes=1, request_id="a", label="3", p_value=0.001, why=Why.SAMPLED)
    two = kept(noise(2), minutes=2, model_name="mnist", model_version="v2", flagged=False, state=State.RELEASED)
    filters = {
        one.id: [
            Filter(request_id="a"),
            Filter(label="3"),
            Filter(p_value_at_most=0.001),
            Filter(why=Why.SAMPLED),
            Filter(until=NOON + timedelta(minutes=2)),
            Filter(flagged=True),
            Filter(state=State.NEW),
            Filter(digest=one.digest),
        ],
        two.id: [
            Filter(model="mnist"),
            Filter(version="v2"),
            Filter(flagged=False),
            Filter(state=State.RELEASED),
            Filter(since=NOON + timedelta(minutes=2)),
        ],
    }
    for expected, chosen in filters.items():
        for one_filter in chosen:
            assert [item.id for item in quarantine.list(one_filter).items] == [expected], one_filter
            assert sum(quarantine.counts(one_filter).values()) == 1
    assert quarantine.list(Filter(label="3", flagged=False)).items == ()
    assert quarantine.counts()[State.RELEASED] == 1


@pytest.mark.parametrize(("cursor", "limit"), [("7", 50), ("'; DROP TABLE items", 50), (None, 0), (None, 201)])
def test_other_cursors_and_limits_are_refused(quarantine, cursor, limit):
    with pytest.raises(InvalidParametersError):
        quarantine.list(cursor=cursor, limit=limit)


@pytest.mark.parametrize("before", list(State))
def test_a_state_becomes_only_what_it_may(quarantine, kept, before):
    for number, after in enumerate(State):
        item = kept(minutes=number, state=before)
        if after in TRANSITIONS[before]:
            assert review(quarantine, item, after).state is after
        else:
            with pytest.raises(TransitionError, match=f"an item that is {before} can only become"):
                review(quarantine, item, after)
            assert quarantine.get(item.id) == item


def test_what_was_not_flagged_is_no_false_positive(quarantine, kept):
    with pytest.raises(TransitionError, match="was not flagged"):
        review(quarantine, kept(flagged=False), State.FALSE_POSITIVE)


def test_of_reviewers_at_the_same_moment_one_wins(quarantine, kept):
    item = kept()
    start = threading.Barrier(8)

    def decide(number: int) -> State | None:
        start.wait()
        state = (State.ABNORMAL, State.FALSE_POSITIVE)[number % 2]
        try:
            return quarantine.review(item.id, state, reviewer=f"r{number}", reason=None, expected_revisions={1}).state
        except ChangedMeanwhileError:
            return None

    with ThreadPoolExecutor(8) as pool:
        decided = [state for state in pool.map(decide, range(8)) if state is not None]
    after = quarantine.get(item.id)
    assert decided == [after.state]
    assert after.revision == 2
    assert [(line.who, line.to_state) for line in quarantine.audit(item.id)] == [(after.reviewer, after.state)]


def test_the_audit_tells_all_and_outlives_the_item(quarantine, kept):
    item = kept()
    first = review(quarantine, item, State.IN_REVIEW)
    review(quarantine, first, State.ABNORMAL)
    with pytest.raises(ChangedMeanwhileError):
        review(quarantine, item, State.ABNORMAL)
    quarantine.delete(item.id, who="root")
    with pytest.raises(UnknownItemError):
        quarantine.get(item.id)
    told = [(line.who, line.action, line.from_state, line.to_state) for line in quarantine.audit(item.id)]
    assert told == [
        ("ann", "reviewed", State.NEW, State.IN_REVIEW),
        ("ann", "reviewed", State.IN_REVIEW, State.ABNORMAL),
        ("root", "deleted", State.ABNORMAL, None),
    ]


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit"])
def test_the_database_itself_refuses_to_change_the_audit(quarantine, database, kept, statement):
    review(quarantine, kept(), State.ABNORMAL)
    with database.writing() as connection, pytest.raises(DatabaseError, match="append-only"):
        connection.execute(text(statement))


def test_bytes_go_with_the_last_item_that_needs_them(quarantine, kept):
    image = noise(1)
    one, two = kept(image, minutes=1), kept(image, minutes=2)
    assert one.digest == two.digest
    quarantine.delete(one.id, who="root")
    np.testing.assert_array_equal(quarantine.pixels(two.id), image)
    quarantine.delete(two.id, who="root")
    three = kept(image, minutes=3)
    np.testing.assert_array_equal(quarantine.pixels(three.id), image)


def test_deleting_and_keeping_the_same_bytes_at_once_leaves_no_row_without_them(quarantine, database, store):
    image = noise(1)
    file = write_image(image)

    def keep_and_delete(number: int) -> None:
        for turn in range(10):
            item = made_item(image, minutes=100 * number + turn)
            keep(database, store, [Kept(item, file)])
            np.testing.assert_array_equal(quarantine.pixels(item.id), image)
            quarantine.delete(item.id, who="root")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(keep_and_delete, range(3)))
    assert quarantine.list().items == ()


def test_keeping_the_same_again_changes_nothing(quarantine, database, store):
    batch = [Kept(made_item(noise(seed), minutes=seed), write_image(noise(seed))) for seed in range(3)]
    keep(database, store, batch)
    reviewed = review(quarantine, batch[0].item, State.ABNORMAL)
    keep(database, store, batch)
    assert quarantine.counts() == {**dict.fromkeys(State, 0), State.NEW: 2, State.ABNORMAL: 1}
    assert quarantine.get(reviewed.id) == reviewed


def test_of_a_row_alone_there_is_no_image(quarantine, database, store):
    item = made_item(noise(1), media_type=None, num_bytes=0)
    keep(database, store, [Kept(item, None)])
    assert quarantine.get(item.id) == item
    with pytest.raises(UnknownItemError, match="only the row"):
        quarantine.image(item.id)
    quarantine.delete(item.id, who="root")


@pytest.mark.parametrize("item_id", ["", "7", "é", "x" * 5000, "01a20e5a-8387-7155-a976-867571bfe4dc"])
def test_unknown_ids_are_unknown(quarantine, item_id):
    with pytest.raises(UnknownItemError):
        quarantine.get(item_id)
    with pytest.raises(UnknownItemError):
        quarantine.audit(item_id)
    with pytest.raises(UnknownItemError):
        quarantine.delete(item_id, who="root")


def test_several_that_start_at_once_bring_one_schema_about(database_address):
    databases = [Database(database_address) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.upgrade, databases))
    with databases[0].reading() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
    for database in databases:
        database.close()


def test_the_newest_migration_is_the_head():
    assert max(path.name[1:5] for path in MIGRATIONS.glob("versions/v*.py")) == HEAD


def test_the_migrations_make_the_tables_as_they_are_used(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from service.quarantine.tables import metadata

    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_of_a_newer_version_is_left_alone(database, database_address, store):
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = Database(database_address)
    with pytest.raises(QuarantineUnavailableError, match="newer version"):
        Quarantine(newer, store).list()
    newer.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "not a URL"),
        ("postgresql://user@host:secret/name", "not a URL"),
        ("mysql://user:secret@host/name", "mysql is not taken"),
        ("sqlite+nonsense:///x", "quarantine_database"),
        ("sqlite://", "SQLite needs a file"),
    ],
)
def test_other_databases_are_a_wrong_setting(address, said):
    with pytest.raises(SettingsError, match=said) as refused:
        Database(address)
    assert "secret" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    database = Database(f"sqlite:///{tmp_path}/file/state/rows.sqlite")
    with pytest.raises(QuarantineUnavailableError):
        Quarantine(database, Store(str(tmp_path / "files"))).list()
    database.close()


def test_a_database_that_takes_nothing_for_a_while_is_unavailable_and_still_read(cluster, store):
    address = cluster.new_database()
    database, batch = Database(address), [Kept(made_item(noise(1)), write_image(noise(1)))]
    keep(database, store, batch)
    with cluster.read_only(address):
        database.close()  # those who are connected go on
        with pytest.raises(QuarantineUnavailableError):
            keep(database, store, [Kept(made_item(noise(2), minutes=1), write_image(noise(2)))])
        assert Quarantine(database, store).get(batch[0].item.id) == batch[0].item
    with pytest.raises(QuarantineUnavailableError):
        keep(database, store, batch)
    keep(database, store, batch)
    database.close()


def test_a_database_that_was_made_anew_is_brought_up_to_date_once_more(cluster, store):
    address = cluster.new_database()
    database, batch = Database(address), [Kept(made_item(noise(1)), write_image(noise(1)))]
    keep(database, store, batch)
    cluster.make_anew(address)
    with pytest.raises(QuarantineUnavailableError):
        keep(database, store, batch)
    keep(database, store, batch)
    assert Quarantine(database, store).get(batch[0].item.id) == batch[0].item
    database.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    (tmp_path / "rows.sqlite").write_bytes(b"something else" * 100)
    database = Database(f"sqlite:///{tmp_path}/rows.sqlite")
    with pytest.raises(QuarantineUnavailableError):
        Quarantine(database, Store(str(tmp_path / "files"))).list()
    database.close()


def test_what_no_database_takes_is_told_as_it_is(database, store):
    """And is not tried again for ever."""
    with pytest.raises(IntegrityError):
        keep(database, store, [Kept(made_item(noise(1)).model_copy(update={"label": None}), None)])
