"""The guard's search, on drops that are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import Stopped
from edgekit.quantize.guard import guard
from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.sensitivity import LayerSensitivity


def layer(i: int, noise: float, macs: int = 1) -> LayerSensitivity:
    return LayerSensitivity(
        node=f"n{i}", op="Conv", module_path="", snr_db=-10 * math.log10(noise), macs=macs
    )


def additive(harm: dict[str, float], field: str = "exclude"):
    """A model whose drop is the sum of what its integer layers do."""

    def measure(options: QuantizeOptions) -> float:
        return sum(h for n, h in harm.items() if n not in getattr(options, field))

    return measure


def test_nothing_is_restored_where_the_budget_holds() -> None:
    ranking = [layer(i, 0.1) for i in range(5)]
    result = guard(lambda _: 0.1, ranking, 1.0, QuantizeOptions())
    assert result.met
    assert result.restored == ()
    assert len(result.trail) == 1


def test_the_harmful_layers_are_found() -> None:
    harm = {f"n{i}": (5.0 if i in (3, 7) else 0.01) for i in range(20)}
    ranking = sorted((layer(i, harm[f"n{i}"]) for i in range(20)), key=lambda s: s.snr_db)
    result = guard(additive(harm), ranking, 1.0, QuantizeOptions(exclude=("x",)))
    assert {s.node for s in result.restored} == {"n3", "n7"}
    assert result.met
    assert result.finished
    assert result.options.exclude[0] == "x"
    assert set(result.options.exclude[1:]) == {"n3", "n7"}


def test_int16_is_given_instead_of_float() -> None:
    harm = {"n0": 5.0, "n1": 0.0}
    result = guard(
        additive(harm, "int16"), [layer(0, 0.5), layer(1, 0.1)], 1.0, QuantizeOptions(), int16=True
    )
    assert result.options.int16 == ("n0",)
    assert result.options.exclude == ()


def test_a_misleading_ranking_is_thinned_out() -> None:
    harm = {"n0": 0.0, "n1": 0.0, "n2": 0.0, "n3": 5.0, "n4": 0.0}
    ranking = [layer(i, 0.9 - 0.1 * i, macs=10 - i) for i in range(5)]  # the only harmful one comes fourth
    result = guard(additive(harm), ranking, 1.0, QuantizeOptions())
    assert [s.node for s in result.restored] == ["n3"]


def test_a_budget_that_cannot_hold_gives_the_least_drop() -> None:
    harm = {"n0": 1.0, "n1": 1.0}
    result = guard(lambda o: 9.0 + additive(harm)(o), [layer(0, 0.2), layer(1, 0.1)], 1.0, QuantizeOptions())
    assert not result.met
    assert result.drop == 9.0
    assert len(result.restored) == 2


def test_int16_activations_come_first() -> None:
    harm = {"n0": 0.0, "n1": 5.0, "n2": 0.0}
    ranking = [layer(i, 0.3 - 0.1 * i) for i in range(3)]
    result = guard(additive(harm, "int16"), ranking, 1.0, QuantizeOptions(), int16=True)
    assert (result.met, result.precision) == (True, "int16")
    assert (result.options.int16, result.options.exclude) == (("n1",), ())
    assert {e.precision for e in result.trail if e.restored} == {"int16"}


def test_float_is_the_way_where_int16_does_not_suffice() -> None:
    """One layer is harmed by its weights, which stay INT8 under INT16 activations."""
    harm = {"n0": 0.5, "n1": 5.0, "n2": 0.5}
    ranking = [layer(i, 0.3 - 0.1 * i) for i in range(3)]
    told = []

    def measure(options: QuantizeOptions) -> float:
        return sum(
            h for n, h in harm.items() if n not in options.exclude and (n == "n1" or n not in options.int16)
        )

    result = guard(measure, ranking, 1.0, QuantizeOptions(), int16=True, progress=lambda *a: told.append(a))
    assert (result.met, result.precision) == (True, "float32")
    assert (result.options.exclude, result.options.int16) == (("n1",), ())
    assert {e.precision for e in result.trail} == {"int16", "float32"}
    assert all(done + remaining >= len(result.trail) for done, remaining, _ in told)


def test_interruption_keeps_the_best_so_far() -> None:
    harm = {f"n{i}": 1.0 for i in range(16)}
    calls = 0

    def measure(options: QuantizeOptions) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return additive(harm)(options)

    result = guard(measure, [layer(i, 0.1) for i in range(16)], 1.0, QuantizeOptions())
    assert not result.finished
    assert result.drop == 14.0
    assert len(result.trail) == 3

    def at_once(_: QuantizeOptions) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard(at_once, [layer(0, 0.1)], 1.0, QuantizeOptions())


def test_a_stop_is_no_wish_to_go_on_with_what_there_is() -> None:
    calls = 0

    def measure(_: QuantizeOptions) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stopped(15)
        return 9.0

    with pytest.raises(Stopped):
        guard(measure, [layer(i, 0.1) for i in range(16)], 1.0, QuantizeOptions())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=40), st.floats(0.01, 10.0))
def test_with_a_true_ranking_the_result_is_the_fewest_layers(harms, budget) -> None:
    harm = {f"n{i}": h for i, h in enumerate(harms)}
    ranking = sorted((layer(i, max(h, 1e-6)) for i, h in enumerate(harms)), key=lambda s: (s.snr_db, s.node))
    told = []
    result = guard(additive(harm), ranking, budget, QuantizeOptions(), progress=lambda *a: told.append(a))
    left = sorted(harms, reverse=True)
    fewest = next(k for k in range(len(left) + 1) if sum(left[k:]) <= budget + 1e-9)
    assert result.met
    assert len(result.restored) <= fewest + 1
    assert len(result.trail) <= 2 * math.ceil(math.log2(len(harms) + 1)) + 2 + fewest
    assert told[-1][0] == len(result.trail)
    assert all(done + remaining >= len(result.trail) for done, remaining, _ in told)
    assert fewest or told[-1][1] == 0
