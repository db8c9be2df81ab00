"""Limits of settings and options: generous, but within the reach of a machine."""

MAX_COUNT = 10**8  # steps or images: twenty times the longest training published (ADM-128), eighty ImageNets
MAX_HELD = 10**6  # images that one command generates and holds in memory
MAX_BATCH = 2**16  # images at a time: 32 times ADM's largest batch
MAX_NEIGHBOURS = 100_000  # images of a set that are compared with all of another: twice the published number
MAX_SIDE = 2048  # pixels of an image: four times ADM's largest
MAX_STEPS = 10_000  # times of a discrete process, and steps through them: iDDPM trained with 4,000
MAX_SEED = 2**63 - 1  # largest integer of common readers of a card
MAX_ETA = 100.0  # DDIM's papers use at most 1; larger values are valid for few steps only
MAX_GUIDANCE = 1000.0  # a hundred times ADM's strongest
MIN_SIGMA_REL, MAX_SIGMA_REL = 0.01, 0.28  # of an EMA profile: γ of 97.5 and 0.23; 1/√12 is the flat average
MAX_NOISE_LEVEL = 1e9  # σ/α: 50,000 times that at the last of 1,000 times of the cosine schedule
MAX_COND_NOISE = 10.0  # on images in [−1, 1]: far more than hides them
MAX_PATH, MAX_NAME = 4095, 255  # bytes of a path, and of a name in it (Linux's limits.h)
