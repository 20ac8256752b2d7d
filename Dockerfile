# The environment of requirements.lock, for a checkout that is mounted at /workspace:
#   docker build --tag scorevae .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" \
#     --volume "$PWD:/workspace" scorevae
# PyTorch brings CUDA's libraries; of the machine only the driver is taken, by NVIDIA's Container
# Toolkit. Without a GPU leave out --gpus.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# Ubuntu keeps no former version of a package, so that a pinned one would soon not be there.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What the installation reads, and no more (.dockerignore): other edits do not repeat it.
WORKDIR /opt/scorevae
COPY LICENSE Makefile README.md pyproject.toml requirements.lock ./
COPY src src
RUN make .venv/installed

# The checkout's code, not the image's copy. HOME: whoever runs it has no folder in here.
ENV PATH=/opt/scorevae/.venv/bin:$PATH \
    PYTHONPATH=/workspace/src \
    HOME=/tmp/home \
    DVC_SITE_CACHE_DIR=/tmp/dvc
RUN mkdir --mode=1777 /tmp/home
WORKDIR /workspace
CMD ["dvc", "repro"]
