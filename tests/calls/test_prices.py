"""Dollars per million tokens: known, stated or unknown, never guessed."""

from __future__ import annotations

import pytest

from selfchat.calls.prices import FREE, Price, earlier_prices, find_price
from selfchat.core.records import Usage

USAGE = Usage(prompt_tokens=2_000_000, completion_tokens=500_000, cached_tokens=1_000_000)


def test_a_price_is_per_million_tokens() -> None:
    assert Price(0.5, 1.5, "2024-02-16").of(USAGE) == 2 * 0.5 + 0.5 * 1.5


def test_cached_tokens_have_a_price_of_their_own() -> None:
    assert Price(0.5, 1.5, "2024-02-16", 0.1).of(USAGE) == pytest.approx(0.5 + 0.1 + 0.5 * 1.5)


def test_batches_cost_half_and_give_no_second_discount_for_cached_tokens() -> None:
    price = Price(2.0, 8.0, "2025-04-14", 0.5)
    assert price.in_batches().of(USAGE) == pytest.approx((2 * 2.0 + 0.5 * 8.0) / 2)


def test_a_listed_model_has_a_dated_price() -> None:
    price = find_price("openai:gpt-3.5-turbo", None, None)
    assert price == (0.5, 1.5, "2024-02-16", None)
    cached = find_price("openai:gpt-4.1", None, None)
    assert cached == (2.0, 8.0, "2025-04-14", 0.5)


def test_the_price_of_the_papers_day_is_kept_for_comparison() -> None:
    assert earlier_prices("openai:gpt-3.5-turbo") == [Price(2.0, 2.0, "2023-04-03")]
    assert earlier_prices("openai:unheard-of") == []


def test_the_recipe_overrides_the_table() -> None:
    assert find_price("openai:gpt-4o", 1.0, 2.0) == (1.0, 2.0, "the recipe", None)


def test_half_a_stated_price_is_none() -> None:
    assert find_price("openai:unheard-of", 1.0, None) is None


def test_an_unknown_price_is_none_and_a_local_model_free() -> None:
    assert find_price("openai:unheard-of", None, None) is None
    assert find_price("embedded:smollm2-135m", None, None) == FREE
    assert find_price("scripted:file.jsonl", None, None) == FREE
