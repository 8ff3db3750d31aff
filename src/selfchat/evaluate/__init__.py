"""What the model is worth: held-out loss, health of replies, the paper's probes, one report."""
