"""The door of gRPC."""

import asyncio
import io

import grpc
import numpy as np
from PIL import Image

from service.runtime import Runtime
from tests.service.grpc_scenarios import outcome, raw, run_scenario

TIMEOUT = 60


def test_what_is_flagged_is_kept_with_its_caller(settings, abnormal_file, tmp_path):
    with Image.open(io.BytesIO(abnormal_file)) as picture:
        images = np.divide(np.asarray(picture)[None, None], 255, dtype=np.float32)

    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        ward = runtime.ward
        assert ward is not None
        ward.writer.start()
        assert isinstance(await outcome(channel, "ModelInfer", raw(images)), bytes)
        await asyncio.to_thread(ward.writer.close, TIMEOUT)
        (item,) = ward.quarantine.list().items
        assert item.principal == "127.0.0.1"
        np.testing.assert_array_equal(ward.quarantine.pixels(item.id), images[0])

    run_scenario(settings, scenario, state_folder=tmp_path)
