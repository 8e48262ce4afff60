# The vits-trainer command with all extras. The argument TORCH selects PyTorch's build:
#   docker build -t vits-trainer .                             CPU
#   docker build -t vits-trainer --build-arg TORCH=cu130 .     NVIDIA GPUs with driver 580 or later
FROM python:3.12-slim-bookworm

# Triton compiles the alignment search with gcc when a run starts; pyworld comes as source.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH=cpu
RUN pip install --no-cache-dir uv==0.13.9

WORKDIR /opt/vits_trainer
COPY pyproject.toml README.md LICENSE ./
COPY vits_trainer vits_trainer
COPY accelerate_configs accelerate_configs
RUN uv pip install --system --no-cache --compile-bytecode --torch-backend "${TORCH}" '.[app,asr,evaluate,onnx,segment,text]'

# Caches of the Hub, numba, Triton and matplotlib; the folder is writable for any --user.
ENV HOME=/home/trainer
RUN useradd --uid 1000 --create-home trainer && chmod 777 /home/trainer
USER 1000
WORKDIR /work
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["vits-trainer"]
CMD ["--help"]
