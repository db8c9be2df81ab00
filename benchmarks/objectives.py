"""Objectives on equal terms: `python -m benchmarks.objectives [--config NAME] [--seed N]`.

Velocity on the cosine schedule, flow matching and EDM, each with and without stratified time: same network,
steps and batch on Fashion-MNIST, three seeds, and the two best at four times the length. Each makes 1,000
images by DDIM in 50 steps. The Fréchet distance is the speedrun's, to 5,000 test images. A result that exists
is not computed again, so several processes can share the work by --config.
"""

from benchmarks.quality import Size
from benchmarks.speedrun import Contest, main

OBJECTIVES = Contest("objectives", Size(seconds=None, images=1000))

if __name__ == "__main__":
    main(OBJECTIVES, __doc__)
