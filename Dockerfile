# A machine to train, score and serve on, of the versions in constraints.txt. docs/operations.md has the commands.
#
#     docker build --tag diffctl .                            # PyTorch's build for CPUs
#     docker build --tag diffctl --build-arg TORCH=cuda .     # for NVIDIA GPUs; run it with --gpus all
#
# python:3.11 is what constraints.txt was tested with. The CUDA libraries come with torch, the driver from the host.
FROM python:3.11-slim
ARG TORCH=cpu
ARG EXTRAS=serve,gpu

# DVC asks git; torch.compile asks for a C++ compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ make && rm -rf /var/lib/apt/lists/*

# What is installed depends on these files alone: an edit of the code installs nothing anew.
WORKDIR /diffctl
COPY Makefile pyproject.toml constraints.txt README.md LICENSE ./
RUN make install VENV=/opt/diffctl TORCH=${TORCH} EXTRAS=${EXTRAS}

# Outside the working folder, so that a clone which is mounted over it hides nothing of the environment.
ENV PATH=/opt/diffctl/bin:$PATH PYTHONPATH=/diffctl
RUN git config --system --add safe.directory /diffctl && git init --quiet
COPY . .
CMD ["diffctl", "--help"]
