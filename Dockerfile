# An image to train, score and serve projects, with the versions of constraints.txt: see docs/operations.md.
#
#     docker build --tag diffctl .                            # PyTorch's build for CPUs
#     docker build --tag diffctl --build-arg TORCH=cuda .     # for NVIDIA GPUs; run it with --gpus all
#
# constraints.txt was tested with Python 3.11. The CUDA libraries come with torch, the driver from the host.
FROM python:3.11-slim AS base
# DVC needs git; torch.compile needs a C++ compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ make && rm -rf /var/lib/apt/lists/*

FROM base AS build
ARG TORCH=cpu
ARG EXTRAS=serve,gpu
# The installed packages depend on these files alone: code edits reuse this layer.
WORKDIR /build
COPY Makefile pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN make install VENV=/opt/diffctl TORCH=${TORCH} EXTRAS=${EXTRAS}
# Now diffctl itself, as a wheel.
COPY . .
RUN /opt/diffctl/bin/pip install --no-deps --force-reinstall .

FROM base
COPY --from=build /opt/diffctl /opt/diffctl
ENV PATH=/opt/diffctl/bin:$PATH
WORKDIR /project
RUN git config --system --add safe.directory /project
CMD ["diffctl", "--help"]
