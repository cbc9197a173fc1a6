"""Money is whole micro-USD, rounded up, and never guessed."""

from decimal import ROUND_CEILING, Decimal
from fractions import Fraction

import pytest
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.pricing import Prices, Usage, micro_usd, rate_card, usd

TOKENS = st.integers(min_value=0, max_value=400_000)
MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-sonnet-4-5"]


@pytest.mark.parametrize("model", MODELS)
@given(usage=st.builds(Usage, **dict.fromkeys(Usage.__dataclass_fields__, TOKENS)))
def test_a_card_prices_exactly_as_genai_prices_does(model: str, usage: Usage) -> None:
    reference = calc_price(
        GenaiUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
        ),
        model,
        provider_id="anthropic",
    ).total_price
    card = rate_card(model)
    assert card is not None
    assert card.price_micro_usd(usage) == int((reference * 1_000_000).to_integral_value(ROUND_CEILING))


@pytest.mark.parametrize("start", [100_000, 200_000])
def test_the_tier_begins_above_its_threshold_not_at_it(start: int) -> None:
    for model in MODELS:
        for tokens in (start - 1, start, start + 1):
            reference = calc_price(
                GenaiUsage(input_tokens=tokens), model, provider_id="anthropic"
            ).total_price
            card = rate_card(model)
            assert card is not None
            expected = (reference * 1_000_000).to_integral_value(ROUND_CEILING)
            assert card.price_micro_usd(Usage(uncached_tokens=tokens)) == expected


@given(uncached=TOKENS, read=TOKENS, five=TOKENS, hour=TOKENS, output=TOKENS)
def test_the_ceiling_is_never_below_the_price(
    uncached: int, read: int, five: int, hour: int, output: int
) -> None:
    card = rate_card("claude-haiku-5-5")
    assert card is not None
    usage = Usage(
        uncached_tokens=uncached,
        cache_read_tokens=read,
        cache_write_5m_tokens=five,
        cache_write_1h_tokens=hour,
        output_tokens=output,
    )
    ceiling = card.ceiling_micro_usd(input_tokens=usage.input_tokens, output_tokens=output)
    assert ceiling >= card.price_micro_usd(usage)


@given(
    input_rate=st.decimals("0.001", "100", places=3),
    dearer=st.decimals("0.001", "100", places=3),
    usage=st.builds(Usage, **dict.fromkeys(Usage.__dataclass_fields__, TOKENS)),
)
def test_no_own_price_is_above_its_ceiling(input_rate: Decimal, dearer: Decimal, usage: Usage) -> None:
    above = {"200000": {"input": str(dearer), "output": 1, "cache_read": 200}}
    own = {"mine": {"input": str(input_rate), "output": 15, "above": above}}
    card = Prices.of(own).card("mine")
    assert card is not None
    ceiling = card.ceiling_micro_usd(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    assert ceiling >= card.price_micro_usd(usage)


@pytest.mark.parametrize(
    ("model", "read", "write"),
    [("claude-opus-5-5", 200, 5_000), ("claude-fable-5-1", 100, 5_000), ("my-model", 400, 5_000)],
)
def test_own_prices_without_cache_rates_keep_the_models_own_shares(model: str, read: int, write: int) -> None:
    card = Prices.of({model: {"input": 4, "output": 20}}).card(model)
    assert card is not None
    assert card.price_micro_usd(Usage(cache_read_tokens=1_000)) == read
    assert card.price_micro_usd(Usage(cache_write_5m_tokens=1_000)) == write


def test_own_prices_keep_the_models_factors_and_may_add_others() -> None:
    own = {"claude-opus-5-5": {"input": 1, "output": 2, "factors": {"fast": 3, "eu": 1.2}}}
    card = Prices.of(own).card("claude-opus-5-5")
    assert card is not None
    assert [card.factor([word]) for word in ("us", "fast", "eu", "batch", "standard", "mars")] == [
        Fraction(11, 10), 3, Fraction(6, 5), Fraction(1, 2), 1, None
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r'factors should be like \{"us": 1.1, "fast": 2\}'):
        Prices.of({"mine": {"input": 1, "output": 2, "factors": {"us": 0}}})


@pytest.mark.parametrize(
    ("model", "us", "fast"),
    [
        ("claude-opus-4-5", 1, None),
        ("claude-haiku-4-5", 1, None),
        ("claude-3-5-haiku-latest", 1, None),
        ("claude-opus-4-6", Fraction(11, 10), None),
        ("claude-sonnet-4-6", Fraction(11, 10), None),
        ("claude-haiku-5-5", Fraction(11, 10), None),
        ("claude-opus-5-5-20260901", Fraction(11, 10), 2),
        ("claude-opus-5", Fraction(11, 10), 2),
        ("claude-fable-5-2", Fraction(11, 10), 2),
    ],
)
def test_a_listed_model_has_the_factors_that_are_published_for_it(
    model: str, us: Fraction, fast: int | None
) -> None:
    card = rate_card(model)
    assert card is not None
    assert (card.factor(["us"]), card.factor(["fast"]), card.factor(["batch"])) == (us, fast, Fraction(1, 2))


def test_a_platforms_own_id_of_a_fast_mode_is_not_priced_as_the_slow_one() -> None:
    assert rate_card("claude-opus-4-8-fast") is None


def test_own_rates_fill_in_what_is_left_out_as_anthropic_bills_it() -> None:
    card = Prices.of(
        '{"mine": {"input": 3, "output": 15, "above": {"200000": {"input": 6, "output": 22.5}}}}'
    ).card("mine")
    assert card is not None
    assert card.price_micro_usd(Usage(output_tokens=1_000_000)) == 15_000_000
    kinds = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    prices = [card.price_micro_usd(Usage(**{kind: 100_000})) for kind in kinds]
    assert prices == [30_000, 375_000, 600_000]
    assert card.price_micro_usd(Usage(uncached_tokens=200_001)) == 1_200_006


@pytest.mark.parametrize(
    ("percent", "share"), [(-15, 85), ("-15", 85), (10, 110), (None, 100), ("", 100), (-100, 0)]
)
def test_a_discount_and_a_surcharge_are_on_the_list(percent: object, share: int) -> None:
    card, listed = Prices.of(None, percent).card("claude-sonnet-5-5"), rate_card("claude-sonnet-5-5")
    assert card is not None
    assert listed is not None
    usage = Usage(uncached_tokens=1_000_000, cache_write_1h_tokens=1_000_000, output_tokens=1_000_000)
    assert card.price_micro_usd(usage) * 100 == listed.price_micro_usd(usage) * share
    assert Prices.of(None, percent).card("my-model") is None


@pytest.mark.parametrize("percent", [-101, "ten", True, float("nan"), [1], 10**6])
def test_what_is_no_change_of_a_price_is_named(percent: object) -> None:
    with pytest.raises(ValueError, match=r"price_change_percent is .* should be a number from -100"):
        Prices.of(None, percent)


@pytest.mark.parametrize(
    ("dollars", "amount"), [("2.50", 2_500_000), (0.1, 100_000), ("$5", 5_000_000), (0, 0)]
)
def test_an_amount_is_read_to_the_micro_usd(dollars: object, amount: int) -> None:
    assert micro_usd(dollars) == amount


@pytest.mark.parametrize("dollars", ["five", -1, float("nan"), "inf", True, None, ""])
def test_what_is_no_amount_is_not_read_as_one(dollars: object) -> None:
    with pytest.raises(ValueError, match="not an amount in US dollars"):
        micro_usd(dollars)


def test_an_unknown_model_has_no_price_rather_than_none_at_all() -> None:
    assert rate_card("a-private-model") is None


def test_usage_is_read_from_the_api_without_counting_a_token_twice() -> None:
    usage = Usage.from_api(
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        }
    )
    assert (usage.uncached_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (10, 60, 40)
    assert usage.input_tokens == 140


def test_a_server_may_state_cache_writes_by_lifetime_alone() -> None:
    lifetimes = {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40}
    usage = Usage.from_api({"input_tokens": 1, "output_tokens": 1, "cache_creation": lifetimes})
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (60, 40)


@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_dollars_are_written_without_losing_a_micro_usd(amount: int) -> None:
    written = usd(amount)
    assert written is not None
    assert Decimal(written) * 1_000_000 == amount
