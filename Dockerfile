FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/streamproc
ENV PATH=/opt/streamproc/bin:$PATH
COPY pyproject.toml requirements.lock LICENSE README.md ./
COPY detectors detectors
COPY streamproc streamproc
RUN pip install --no-cache-dir --constraint requirements.lock .
# The kernels are compiled here, not at the start of every container. Numba trusts its cache by the source's
# path, size and time: both stages have it in one place, and the time is in whole seconds, as layers keep it.
ENV NUMBA_CACHE_DIR=/opt/streamproc/numba-cache
RUN find /opt/streamproc/lib -name '*.py' -exec touch -d @1700000000 {} + \
 && python -c 'from streamproc.pipeline import warm_up; warm_up()' \
 && python -m compileall -q /opt/streamproc/lib

FROM python:3.11-slim
# A number, not a name: Kubernetes' runAsNonRoot cannot look names up.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/streamproc streamproc \
 && install -d -o 10001 -g 10001 /var/lib/streamproc
COPY --from=build /opt/streamproc /opt/streamproc
COPY --chmod=755 deploy/entrypoint.sh /opt/streamproc/entrypoint.sh
ENV PATH=/opt/streamproc/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba-cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/streamproc
EXPOSE 6066
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6066/-/healthy', timeout=4)"]
ENTRYPOINT ["/opt/streamproc/entrypoint.sh"]
CMD ["worker", "--config", "/etc/streamproc/worker.yaml"]
