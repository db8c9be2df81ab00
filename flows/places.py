"""Where commands leave what is no stage's out, for the flows that put it on their page."""

from pathlib import Path

SWEEP = Path("runs/sweep")  # samples/ and scores.json of the last `diffctl sweep`
EVALUATED = Path("runs/evaluate/scores.json")  # what the flow has `diffctl evaluate` write
