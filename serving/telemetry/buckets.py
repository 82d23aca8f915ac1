"""The bounds of the histograms' buckets: the same for all of a kind, so that a dashboard may compare them."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
OLD_SECONDS = SECONDS[2:]  # of the histograms that the release before this one had
IMAGES = tuple(2**n for n in range(11))  # BATCH_SIZE is 1024 at most
