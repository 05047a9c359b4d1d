"""Training: the two pretext objectives, the contrastive one, and the loop that they share."""
