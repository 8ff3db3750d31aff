"""What people talk to: the tuned model in a terminal and behind an OpenAI-compatible API."""
