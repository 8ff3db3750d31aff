"""The one renderer: messages to text, token ids and loss mask; markers and prompts."""
