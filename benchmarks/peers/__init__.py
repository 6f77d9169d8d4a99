"""The parts of `python benchmarks/peers.py`: plan, material, learning, journal, concluding."""
