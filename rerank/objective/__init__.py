"""Scores in, loss out: pure functions on padded [B, N] tensors, float32 inside, masks respected.

imitation   a teacher's ranks or scores, or labels -> loss
expected    the exact expected metric under Plackett-Luce, and its gradient
sampled     gradients of rewards that are known only for sampled rankings
anchor      how far the policy has moved from its clone
"""
