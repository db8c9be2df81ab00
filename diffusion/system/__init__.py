"""The ground: files, locks, signals, errors, devices, threads, sections. No word of diffusion."""
