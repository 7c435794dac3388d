from __future__ import annotations

from pipeline.worker import learning_rate


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(s, steps=100, peak=1.0, schedule="one-cycle") for s in range(101)]
    assert rates[0] == 1 / 25
    assert max(rates) == rates[20] == 1.0
    assert rates[100] < 1e-12
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate(s, steps=9, peak=0.01, schedule="constant") for s in range(9)} == {0.01}
