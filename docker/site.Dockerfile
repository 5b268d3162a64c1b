# A site: Flower's SuperNode and SuperExec, our launcher and the trainer.
# From the root of the repository:
#   docker build --file docker/site.Dockerfile --tag fedmslora-site:0.7.0 .
# For several GPUs (`workers` in the site file): --build-arg EXTRAS=site,deepspeed
#
# BASE as in coordinator.Dockerfile, which also says how to pin it by its digest. torch from a package
# index includes its CUDA 13.0 libraries, so no CUDA base is needed: the driver comes from the host.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}

# The container can write only to its volumes and to /tmp.
# DS_BUILD_OPS: DeepSpeed compiles nothing; the image has no compiler.
# NVIDIA_...: what NVIDIA's container runtime brings in, and the driver that it refuses as too old. It
# does nothing where no GPU is given to the container.
ENV HOME=/tmp \
    USER=fedmslora \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    DS_BUILD_OPS=0 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1

WORKDIR /opt/fedmslora

# The packages come first, so that a change of our own code does not install them again.
ARG EXTRAS=site
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3.11 -m venv /opt/venv \
    && python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint constraints.txt --editable ".[${EXTRAS}]"

# server/ is included because the code digest covers both sides; nothing here runs it.
COPY fedmslora.py ./
COPY common/ common/
COPY server/ server/
COPY client/ client/
COPY commands/ commands/
COPY cost/ cost/
COPY interchange/ interchange/
COPY report/ report/
COPY serving/ serving/
COPY configs/ configs/
RUN chmod --recursive u=rwX,go=rX /opt/fedmslora \
    && python -m compileall -q . \
    && install --directory --owner=10001 --group=10001 --mode=755 /site

USER 10001:10001
ENTRYPOINT ["fedmslora"]
CMD ["site", "start", "--site", "/site/site.yaml"]
# The SuperNode's own API, from which the SuperExec gets its tasks.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client; there = http.client.HTTPConnection('127.0.0.1', 9094, timeout=5); there.request('GET', '/health'); raise SystemExit(there.getresponse().status != 200)"]
