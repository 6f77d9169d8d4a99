"""What a listwise model is shown, and how its answers are read: prompts, windows, answers; without any model."""
