"""Training: the pretext objectives, the contrastive objective, and the loop that runs them."""
