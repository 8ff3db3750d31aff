"""Selfchat: from a list of seed questions to a chat model, in one command."""

__version__ = "0.1.0"
