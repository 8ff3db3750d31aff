"""Where dialogues start: seeds are read, normalised, deduplicated and sampled here."""

from selfchat.seeds.options import SeedsOptions
from selfchat.seeds.readers import local_inputs
from selfchat.seeds.step import SeedsCounts, gather

__all__ = ["SeedsCounts", "SeedsOptions", "gather", "local_inputs"]
