# One image for every part: the Airflow components and `recmeta serve`. Runs as an ordinary user.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/recmeta
ENV PATH=/opt/recmeta/bin:$PATH
WORKDIR /src

# torch first, by its build without CUDA: the one on PyPI draws in gigabytes that nothing here uses.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" "torch==$(sed -n 's/^torch==//p' constraints.txt)"

# Dependencies before code, around an empty package, so that a changed line does not install them again.
COPY pyproject.toml README.md ./
RUN mkdir recmeta && touch recmeta/__init__.py \
 && pip install -c constraints.txt ".[celery,postgres,redis]"
COPY recmeta recmeta
RUN pip install --no-deps --force-reinstall . && pip check


FROM python:3.11-slim-bookworm
# libgomp: LightGBM. tini: Airflow and the server start children, and process 1 has to reap them.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home recmeta \
 && install -d -o recmeta -g recmeta /var/lib/recmeta /opt/airflow /opt/airflow/logs
COPY --from=build /opt/recmeta /opt/recmeta
COPY dags /opt/airflow/dags
COPY feature_repo /opt/feature_repo
ENV PATH=/opt/recmeta/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    RECMETA_WORKSPACE=/var/lib/recmeta
USER 10001:10001
WORKDIR /home/recmeta
VOLUME ["/var/lib/recmeta"]
EXPOSE 8000 8080
ENTRYPOINT ["tini", "-g", "--"]
CMD ["recmeta", "serve", "--host", "0.0.0.0", "--port", "8000"]
