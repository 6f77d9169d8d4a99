"""From candidate lists to scores, with bounded memory: token-budget micro-batches, gradient caching, precision."""
