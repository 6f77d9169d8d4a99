"""The stages: clone a teacher's orderings, refine against a reward; one loop, kill-safe, selected on dev lists."""
