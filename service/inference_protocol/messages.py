"""The protocol's protobuf messages, from the compiled open_inference.proto.

They live in a pool of their own: the default pool takes each message's name once, and the clients of Triton and
of KServe both put theirs there.
"""

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
COMPILED = Path(__file__).with_name("open_inference.binpb")


def _load() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.Add(file)
    return pool


POOL = _load()
SERVICE = POOL.FindServiceByName(f"{PACKAGE}.GRPCInferenceService")


def _message(name: str) -> Any:
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


REQUESTS = {method.name: GetMessageClass(method.input_type) for method in SERVICE.methods}
ServerLiveResponse = _message("ServerLiveResponse")
ServerReadyResponse = _message("ServerReadyResponse")
ModelReadyResponse = _message("ModelReadyResponse")
ServerMetadataResponse = _message("ServerMetadataResponse")
ModelMetadataResponse = _message("ModelMetadataResponse")
ModelInferResponse = _message("ModelInferResponse")
