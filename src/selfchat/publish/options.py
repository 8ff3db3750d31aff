"""The options of the publish step."""

from __future__ import annotations

from selfchat.core.energy import WORLD_KG_PER_KWH
from selfchat.core.options import Options, result


class PublishOptions(Options):
    """What is given away, and under which terms; the defaults are the paper's (section 7)."""

    merge: bool = result(False, "also write the base with the adapter merged into it")
    weights_licence: str = result(
        "research use only", "terms of the adapter, as the card states them", min_length=1
    )
    data_licence: str = result(
        "CC-BY-NC-4.0", "terms of the corpus, as the card states them", min_length=1
    )
    grid_kg_per_kwh: float = result(
        WORLD_KG_PER_KWH, "kg of CO2 for each kWh of your electricity; world average", ge=0
    )
