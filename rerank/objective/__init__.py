"""Scores in, loss out: pure functions on padded [B, N] tensors, float32 inside, masks respected.

imitation      a teacher's ranks or scores, or labels -> loss
expected       the exact expected reward under Plackett-Luce, and its gradient (nodes, product_tree: how)
utility        what is maximised of it: itself, its log, a power, the chance that one of k draws succeeds
sampled        eight estimators for rewards that are known only for sampled rankings (draws, additive: how)
anchor         how far the policy has moved from its clone, and how much it still explores
calibration    the level of the scores, which ranking losses leave open
"""
