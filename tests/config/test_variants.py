"""Names of variants: what each says, and what a name that is none is told."""

import pytest

from pipeline.config import ConfigError, EvalConfig, VariantSpec, parse_cli, parse_variant
from pipeline.config.variants import COUNTED, NAMED, default_variants


def test_a_name_says_kind_number_and_cell() -> None:
    assert parse_variant("retained64") == VariantSpec("retained64", "retained", 64)
    assert parse_variant("retained7_ahn") == VariantSpec("retained7_ahn", "retained", 7, has_cell=True)
    assert [parse_variant(f"{kind}1024").num_tokens for kind in COUNTED] == [1024] * len(COUNTED)
    assert [parse_variant(name) for name in NAMED] == [VariantSpec(n, n, has_cell=n == "ahn") for n in NAMED]
    assert {k for k in (*NAMED, *(f"{c}1" for c in COUNTED)) if parse_variant(k).is_retaining} == {
        "retained1", "random1", "received1", "oracle1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("retaind48", "; did you mean retained48?"),
        ("retained64_anh", "; did you mean retained64_ahn?"),
        ("random64_ahn", "; did you mean random64?"),
        ("retained", "; did you mean retained64?"),
        ("oracle0", "; did you mean oracle64?"),
        ("ful", "; did you mean full?"),
        ("quest", ""),
    ],
)
def test_an_unknown_name_is_a_line_with_the_nearest_known(name, nearest) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cli(EvalConfig, ["--model", "m", "--output", "o", "--variants", "full", name])
    assert str(caught.value).startswith(f"--variants {name}: no such variant{nearest}; known are full, ")
    assert "\n" not in str(caught.value)


def test_a_list_of_names_may_have_commas() -> None:
    config = parse_cli(EvalConfig, ["--model", "m", "--output", "o", "--variants", "full,wider3", "retained3_ahn"])
    assert config.variants == ["full", "wider3", "retained3_ahn"]
    for wrong, told in ((("full,full",), "has one twice"), ((), "at least one value")):
        with pytest.raises(ConfigError, match=told):
            parse_cli(EvalConfig, ["--model", "m", "--output", "o", "--variants", *wrong])


def test_what_a_model_retains_is_its_default() -> None:
    assert default_variants(0)[-2:] == ["memory_off", "ahn"]
    assert default_variants(32) == ["full", "window", "wider32", "retained32", "retained32_ahn", "ahn"]
    assert all(parse_variant(name) for number in (0, 5) for name in default_variants(number))
