FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/streamproc
ENV PATH=/opt/streamproc/bin:$PATH
COPY pyproject.toml LICENSE README.md ./
COPY detectors detectors
COPY streamproc streamproc
RUN pip install --no-cache-dir .
# The kernels are compiled here, not at the start of every container: a read-only root has no place for them.
# Numba keys its cache by the source file's path and time, so both stages have the environment in one place,
# and by the CPU: on another model it compiles anew, in memory.
ENV NUMBA_CACHE_DIR=/opt/streamproc/numba-cache
RUN python -m detectors.compile && python -m compileall -q /opt/streamproc/lib

FROM python:3.11-slim
# A number, not a name: Kubernetes' runAsNonRoot cannot look names up.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/streamproc streamproc \
 && install -d -o 10001 -g 10001 /var/lib/streamproc
COPY --from=build /opt/streamproc /opt/streamproc
ENV PATH=/opt/streamproc/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/streamproc/numba-cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/streamproc
EXPOSE 6066
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6066/-/healthy', timeout=4)"]
ENTRYPOINT ["streamproc"]
CMD ["worker", "--config", "/etc/streamproc/worker.yaml"]
