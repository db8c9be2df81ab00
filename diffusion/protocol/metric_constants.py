"""How images are scored, as every card says it: subsets, splits, neighbours and seed."""

SEED = 2020  # torch-fidelity's own default: which images a subset or a split gets
SUBSETS = 100  # of a kernel distance
SUBSET_SIZE = 500  # at most
GROUPS = 100  # of images, put together at random, by which a score's errors are told
IS_SPLITS = 10  # at most
NEIGHBOUR = 3  # the k whose distance is an image's reach (Kynkäänniemi et al. 2019)
SHARES = ("precision", "recall", "density", "coverage")  # of neighbours, in an extractor's features
WIDE_NEIGHBOUR = 5  # that of density and coverage (Naeem et al. 2020)


def subset_size(count: int, reference_count: int) -> int:
    """Images a subset: half of the smaller set, at least 2 and at most 500."""
    return max(2, min(SUBSET_SIZE, count // 2, reference_count // 2))


def is_splits(count: int) -> int:
    """Splits of an Inception score: 10, or fewer where there are fewer images."""
    return min(IS_SPLITS, count)
