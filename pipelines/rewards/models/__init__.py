"""Trained reward models: losses, heads and the training loop. The backbone is in `actors.reward_model`."""
