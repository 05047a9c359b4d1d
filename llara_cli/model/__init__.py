"""The model: recipes, tokens, layouts, the backbone and the encoder."""
