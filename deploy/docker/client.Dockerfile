# A site. Build it from the checkout's root:
#   docker build --file deploy/docker/client.Dockerfile --tag foedus-client .
FROM python:3.11-slim-bookworm

# torch comes first and by its exact version: a range would fetch more than is used.
COPY constraints.txt /opt/foedus/
RUN pip install --no-cache-dir --constraint /opt/foedus/constraints.txt torch==2.13.0

# Installed from the checkout, like the coordinator: the site compares its bundle with this one.
COPY . /opt/foedus
RUN pip install --no-cache-dir --constraint /opt/foedus/constraints.txt --editable /opt/foedus \
    && useradd --system --uid 10001 --home-dir /var/lib/foedus --create-home foedus

USER 10001
WORKDIR /var/lib/foedus
ENV PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/foedus
STOPSIGNAL SIGTERM
ENTRYPOINT ["foedus"]
CMD ["client", "up", "--config", "/var/lib/foedus/site.yaml"]
