"""Conditions: absence is a mask, and every operation keeps the rows together."""

import pytest
import torch

from suffuse import Condition
from suffuse.errors import InvalidArgument


@pytest.fixture
def cond():
    g = torch.Generator().manual_seed(0)
    return Condition(
        tokens={"speed": torch.randn(4, 2, 3, generator=g)}, maps={"tissue": torch.randn(4, 1, 8, 8, generator=g)}
    )


def test_everything_is_given_by_default(cond):
    assert len(cond) == 4
    assert cond.names == ("speed", "tissue")
    assert cond.masks["speed"].shape == (4, 2)
    assert cond.masks["tissue"].shape == (4,)
    assert all(bool(m.all()) for m in cond.masks.values())


def test_null_masks_and_zeroes(cond):
    null = cond.null()
    assert not any(bool(m.any()) for m in null.masks.values())
    assert all(bool((v == 0).all()) for v in null.values.values())
    assert null.values["tissue"].shape == cond.values["tissue"].shape


def test_null_uses_a_null_value_where_there_is_one(cond):
    prompt = torch.ones(2, 3)
    null = Condition(cond.tokens, cond.maps, nulls={"speed": prompt}).null()
    torch.testing.assert_close(null.tokens["speed"], prompt.expand(4, -1, -1))
    assert bool(null.masks["speed"].all())
    assert not bool(null.masks["tissue"].any())


def test_dropout_of_zero_and_one(cond):
    assert cond.dropout(0.0) is cond
    dropped = cond.dropout(1.0)
    assert not bool(dropped.masks["speed"].any())


def test_dropout_takes_whole_rows_or_single_names():
    n = 4000
    cond = Condition(tokens={"a": torch.ones(n, 1, 1), "b": torch.ones(n, 1, 1)})
    rows = cond.dropout(0.3, torch.Generator().manual_seed(0))
    assert torch.equal(rows.masks["a"], rows.masks["b"])
    assert 1 - rows.masks["a"].float().mean() == pytest.approx(0.3, abs=0.03)
    names = cond.dropout(0.3, torch.Generator().manual_seed(0), per_name=True)
    assert (~names.masks["a"] & ~names.masks["b"]).float().mean() == pytest.approx(0.09, abs=0.02)


def test_absence_of_some_names_leaves_the_others(cond):
    for part in (cond.null(["speed"]), cond.dropout(1.0, names=["speed"])):
        assert not bool(part.masks["speed"].any()) and bool(part.masks["tissue"].all())
        assert part.names == cond.names
        torch.testing.assert_close(part.maps["tissue"], cond.maps["tissue"])
    with pytest.raises(InvalidArgument, match="cond has no"):
        cond.null(["style"])


def test_cat_undoes_indexing(cond):
    again = Condition.cat([cond[:1], cond[1:]])
    for key, value in cond.values.items():
        assert torch.equal(again.values[key], value)
    assert len(cond[2]) == 1
    assert torch.equal(cond[[3, 0]].tokens["speed"], cond.tokens["speed"][[3, 0]])


def test_repeat_keeps_the_copies_of_a_row_together(cond):
    assert torch.equal(cond.repeat(3).tokens["speed"][3:6], cond.tokens["speed"][1:2].expand(3, -1, -1))


def test_select_and_merge_are_inverse(cond):
    merged = cond.select(["tissue"]).merge(cond.select(["speed"]))
    assert set(merged.names) == set(cond.names)
    with pytest.raises(InvalidArgument, match="both conditions have"):
        cond.merge(cond)
    with pytest.raises(InvalidArgument, match="cond has no"):
        cond.select(["sped"])


def test_to_casts_values_but_not_masks(cond):
    moved = cond.to(dtype=torch.float64)
    assert moved.tokens["speed"].dtype == torch.float64
    assert moved.masks["speed"].dtype == torch.bool


def test_expect_names_what_is_wrong(cond):
    cond.expect(4, tokens={"speed": 3}, maps={"tissue": 1})
    with pytest.raises(InvalidArgument, match="batch size 4 but x has 5"):
        cond.expect(5)
    with pytest.raises(InvalidArgument, match="lacks tokens\\['height'\\]"):
        cond.expect(4, tokens={"height": 1})
    with pytest.raises(InvalidArgument, match="has 3 features, the model was built with 2"):
        cond.expect(4, tokens={"speed": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": {"a": torch.ones(4, 3)}}, "must be \\(B, L, D\\)"),
        ({"maps": {"a": torch.ones(4, 3)}}, "must be \\(B, C, \\*spatial\\)"),
        ({"tokens": {"a": torch.ones(4, 1, 3), "b": torch.ones(5, 1, 3)}}, "same batch size"),
        ({"tokens": {"a": torch.ones(4, 1, 3)}, "maps": {"a": torch.ones(4, 1, 3)}}, "both as tokens and as a map"),
        ({"tokens": {"a": torch.ones(4, 1, 3)}, "masks": {"b": torch.ones(4, 1, dtype=torch.bool)}}, "not a condition"),
        ({"tokens": {"a": torch.ones(4, 1, 3)}, "masks": {"a": torch.ones(4, 1)}}, "must be bool"),
        ({"tokens": {"a": torch.ones(4, 1, 3)}, "nulls": {"a": torch.ones(3)}}, "nulls\\['a'\\] must have shape"),
    ],
)
def test_bad_conditions_are_refused(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        Condition(**arguments)


def test_cat_refuses_what_does_not_match(cond):
    with pytest.raises(InvalidArgument, match="empty"):
        Condition.cat([])
    with pytest.raises(InvalidArgument, match="cannot concatenate conditions"):
        Condition.cat([cond, cond.select(["speed"])])
    with pytest.raises(InvalidArgument, match="pad tokens"):
        Condition.cat([cond.select(["speed"]), Condition(tokens={"speed": torch.ones(4, 5, 3)})])
    with pytest.raises(InvalidArgument, match="probability p"):
        cond.dropout(1.5)
