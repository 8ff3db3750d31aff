"""Calls that cost money or time: their journal, pacing, budget and prices."""
