# syntax=docker/dockerfile:1
# A site: Flower's SuperNode and SuperExec, our launcher and the trainer.
# From the root of the repository:
#   docker build --file docker/site.Dockerfile --tag fedmslora-site:0.6.0 .
#
# torch from a package index includes its CUDA 13.0 libraries, so the smallest CUDA base image is
# enough; it refuses a driver that is too old. The UBI variant has a maintained Python 3.11; the
# Ubuntu variants have 3.10 and 3.12.
FROM nvidia/cuda:13.0.1-base-ubi9

# The newest 3.11 of the base image's distribution, with its security fixes.
# hadolint ignore=DL3041
RUN dnf install -y --nodocs --setopt=install_weak_deps=False python3.11 python3.11-pip \
    && dnf clean all

# The container can write only to its volumes and to /tmp.
# DS_BUILD_OPS: DeepSpeed compiles nothing; the image has no compiler.
ENV HOME=/tmp \
    USER=fedmslora \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    DS_BUILD_OPS=0 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1

WORKDIR /opt/fedmslora

# The packages come first, so that a change of our own code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3.11 -m venv /opt/venv \
    && python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint constraints.txt --editable '.[site,deepspeed]'

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
    && install --directory --owner=10001 --group=10001 --mode=700 /site

USER 10001:10001
ENTRYPOINT ["fedmslora"]
CMD ["site", "start", "--site", "/site/site.yaml"]
# The SuperNode's own API, from which the SuperExec gets its tasks.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client; there = http.client.HTTPConnection('127.0.0.1', 9094, timeout=5); there.request('GET', '/health'); raise SystemExit(there.getresponse().status != 200)"]
