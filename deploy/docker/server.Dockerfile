# The coordinator. Build it from the checkout's root:
#   docker build --file deploy/docker/server.Dockerfile --tag foedus-server .
FROM python:3.11-slim-bookworm

# torch comes first and by its exact version: a range would fetch more than is used.
COPY constraints.txt /opt/foedus/
RUN pip install --no-cache-dir --constraint /opt/foedus/constraints.txt torch==2.13.0

# Installed from the checkout, because the bundle that sites compare with theirs is made of it.
COPY . /opt/foedus
RUN pip install --no-cache-dir --constraint /opt/foedus/constraints.txt --editable /opt/foedus \
    && useradd --system --uid 10001 --home-dir /var/lib/foedus --create-home foedus

USER 10001
WORKDIR /var/lib/foedus
ENV FOEDUS_CONSORTIUM=/var/lib/foedus/consortium \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/foedus
EXPOSE 9443
STOPSIGNAL SIGTERM
# Health is answered on the container's own loopback address only.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9445/health')"]
ENTRYPOINT ["foedus"]
CMD ["server", "up", "--log-format", "json"]
