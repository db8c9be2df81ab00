"""Foundations without any diffusion: files, locks, signals, errors, devices, threads, config sections."""
