# An image to train, score and serve, with the versions of constraints.txt: see docs/operations.md.
#
#     docker build --tag diffctl .                            # PyTorch's build for CPUs
#     docker build --tag diffctl --build-arg TORCH=cuda .     # for NVIDIA GPUs; run it with --gpus all
#
# constraints.txt was tested with Python 3.11. The CUDA libraries come with torch, the driver from the host.
FROM python:3.11-slim
ARG TORCH=cpu
ARG EXTRAS=serve,gpu

# DVC needs git; torch.compile needs a C++ compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ make && rm -rf /var/lib/apt/lists/*

# The installed packages depend on these files alone: code edits reuse this layer.
WORKDIR /diffctl
COPY Makefile pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN make install VENV=/opt/diffctl TORCH=${TORCH} EXTRAS=${EXTRAS}

# Outside the working folder, so that a mounted clone does not hide the environment.
ENV PATH=/opt/diffctl/bin:$PATH PYTHONPATH=/diffctl
RUN git config --system --add safe.directory /diffctl && git init --quiet
COPY . .
CMD ["diffctl", "--help"]
