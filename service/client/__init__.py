"""A typed client, sync and async. Needs httpx, numpy and Pillow, and nothing that the service runs on."""

from service.client.answers import (
    Answer,
    DetectorSays,
    FailedPrediction,
    Fault,
    Model,
    ModelVersion,
    NamedModel,
    Prediction,
    Problem,
    Versions,
)
from service.client.async_client import AsyncClient
from service.client.client import Client
from service.client.errors import (
    AnswerError,
    ClientError,
    DeadlineError,
    InputError,
    ProblemError,
    UnreachableError,
)
from service.client.images import Image, Images
from service.client.retries import Retries

__all__ = [
    "Answer",
    "AnswerError",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineError",
    "DetectorSays",
    "FailedPrediction",
    "Fault",
    "Image",
    "Images",
    "InputError",
    "Model",
    "ModelVersion",
    "NamedModel",
    "Prediction",
    "Problem",
    "ProblemError",
    "Retries",
    "UnreachableError",
    "Versions",
]
