# The coordinator: Flower's SuperLink and SuperExec, the reverse proxy (edge), the keeper. No torch.
# From the root of the repository:
#   docker build --file docker/coordinator.Dockerfile --tag fedmslora-coordinator:0.7.0 .
#
# A tag moves, a digest does not. To pin the base: docker pull python:3.11-slim-bookworm, then
#   docker image inspect --format '{{index .RepoDigests 0}}' python:3.11-slim-bookworm
# says its name with the digest, which goes to --build-arg BASE=..., or to BASE in .env for compose.
# Any image with Python 3.11 and its venv will do.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}

# The container can write only to its volume and to /tmp.
ENV HOME=/tmp \
    USER=fedmslora \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1

WORKDIR /opt/fedmslora

# The packages come first, so that a change of our own code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3.11 -m venv /opt/venv \
    && python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint constraints.txt --editable .

# client/ is included because the code digest covers both sides; nothing here runs it.
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
    && install --directory --owner=10001 --group=10001 --mode=700 /state

USER 10001:10001
EXPOSE 8443
ENTRYPOINT ["fedmslora"]
CMD ["coordinator", "start", "--state", "/state"]
# The proxy answers; a request without a Fleet path gets 403.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, json, ssl; settings = json.load(open('/state/coordinator.json')); proxy = http.client.HTTPSConnection('127.0.0.1', settings['port'], timeout=5, context=ssl.create_default_context(cafile='/state/tls/ca.crt')); proxy.request('GET', '/'); raise SystemExit(proxy.getresponse().status != 403)"]
