"""The model: recipes, tokens, layouts, the decoder and the encoder."""
