"""Two services over one PostgreSQL and one S3 store: what either keeps, both show, and a review is everybody's."""

import numpy as np

from tests.service.quarantine.test_routes import URL, await_items, pixels, predict


def test_services_share_what_is_kept_and_how_it_was_reviewed(make_client, cluster, bucket, tmp_path, abnormal_file):
    given = {"quarantine_database": cluster.new_database(), "quarantine_store": bucket}
    one, other = (make_client(**given, state_folder=tmp_path / name) for name in ("one", "other"))
    predict(one, abnormal_file, **{"x-request-id": "of-one"})
    predict(other, abnormal_file, **{"x-request-id": "of-other"})
    for client in (one, other):
        assert len(await_items(client, "of-one", 1)) == len(await_items(client, "of-other", 1)) == 1
    (item,) = await_items(other, "of-one", 1)
    image = other.get(f"{URL}/{item['id']}/image")
    np.testing.assert_array_equal(pixels(image.content), pixels(abnormal_file))
    etag = other.get(f"{URL}/{item['id']}").headers["etag"]
    body = {"state": "abnormal", "reason": "noise"}
    assert other.patch(f"{URL}/{item['id']}", json=body, headers={"if-match": etag}).status_code == 200
    assert one.get(f"{URL}/{item['id']}").json()["state"] == "abnormal"
    late = one.patch(f"{URL}/{item['id']}", json={"state": "released"}, headers={"if-match": etag})
    assert late.status_code == 412
    assert list(tmp_path.rglob("*.sqlite")) == []
