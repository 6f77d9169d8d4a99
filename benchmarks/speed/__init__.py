"""The parts of `python benchmarks/speed.py`: material, sides, predicting, training, memory, peak."""
