"""What leaves the house: an adapter or a merged model, with a model card and a data card."""

from selfchat.publish.options import PublishOptions
from selfchat.publish.step import PublishedCounts, publish

__all__ = ["PublishOptions", "PublishedCounts", "publish"]
