"""The only doors to a language model: one protocol, and the models behind it."""
