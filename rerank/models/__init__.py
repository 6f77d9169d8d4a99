"""Scorers (cross-encoder, light head on frozen vectors), the Plackett-Luce policy over them, loading and saving."""
