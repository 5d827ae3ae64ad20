"""MLServer, KServe's server for Python: adaptive batching before a pool of worker processes."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.benchmarks.serving.work import Work, columns


class ScreeningRuntime(MLModel):
    async def load(self) -> bool:
        self._work = Work.from_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        images = [self._work.read(element) for element in Base64Codec.decode_input(tensor)]
        said = columns(self._work.screen(images))
        outputs = [NumpyCodec.encode_output(name, np.asarray(values)[:, None]) for name, values in said.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
