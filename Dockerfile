# The service with the shipped bundle. Any torch wheel that satisfies the lock's pin will do: build with
# --build-arg PIP_ARGS=... to take it from where you keep yours.
FROM python:3.11-slim-bookworm AS build
ARG PIP_ARGS=""
# scale adds Ray, for deploy/kubernetes/kuberay.
ARG EXTRAS="grpc,postgresql,s3,tracing"
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY model model
COPY detectors detectors
COPY service service
# The lock constrains; what is installed is what the service needs, without the offline extras. What runs needs no
# installer.
RUN python -m venv /opt/lgm \
    && /opt/lgm/bin/pip install --no-cache-dir ${PIP_ARGS} --constraint requirements.lock ".[${EXTRAS}]" \
    && /opt/lgm/bin/pip uninstall --yes pip

FROM python:3.11-slim-bookworm
# What is kept for review outlives the container in a volume there.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin lgm \
    && install --directory --owner=10001 --group=lgm --mode=0700 /var/lib/lgm-guard
COPY --from=build /opt/lgm /opt/lgm
ENV PATH=/opt/lgm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LGM_HOST=0.0.0.0 \
    LGM_PORT=8000 \
    LGM_STATE_FOLDER=/var/lib/lgm-guard
VOLUME /var/lib/lgm-guard
# It listens to other machines, so it wants API keys (LGM_API_KEYS) or LGM_ALLOW_ANONYMOUS=true, else it does not start.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lgm"]
CMD ["serve"]
