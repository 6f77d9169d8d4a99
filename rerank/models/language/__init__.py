"""Language models that read whole lists: one forward pass (`listwise`) or a written permutation (`generative`)."""
