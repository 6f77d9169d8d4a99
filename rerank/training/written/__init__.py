"""The stages of models that write their rankings: cloning and refinement through `training.loop`."""
