"""Programs that run where neither this library nor flax is: StableHLO, weights, and a manifest that tells of them."""
