"""The bands of the log-SNR, log α²/σ², by which all trainings report losses, from images to noise."""

CHANGES_RESULTS = False  # diffusion/code_digest.py

BAND_EDGES = (3.0, 0.0, -3.0)  # noise levels σ/α of 0.22, 1 and 4.5
BAND_NAMES = ("loss_log_snr_above_3", "loss_log_snr_0_to_3", "loss_log_snr_-3_to_0", "loss_log_snr_below_-3")
