"""What is learned: LoRA adapters on a frozen base, from a corpus."""
