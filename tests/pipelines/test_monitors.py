"""Each monitor is tripped by what it is for and by nothing else; a healthy run raises no alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.journal import read_lines
from pipelines.monitors import MONITORS, Alarm, Monitors
from pipelines.settings import MonitorSettings

Line = dict[str, Any]


def healthy(step: int) -> Line:
    """The course of a run of the embedded world over 60 steps: rewards rise, chosen answers get likelier,
    three groups in four come to be ties."""
    share = min(step, 60) / 60
    wave = (step % 5 - 2) / 10  # from step to step
    return {
        "step": step,
        "groups": 24,
        "dead_letters": 0,
        "reward": 0.7 + 0.9 * share + wave,
        "reward_best": 1.4 + share + wave,
        "reward_worst": -0.4 - 0.6 * share + wave,
        "reward_variance": 0.6,
        "length_variance": 16.0,
        "reward_length_covariance": -1.5 + 2 * share,
        "ties": 0.25 + 0.5 * share,
        "logp_chosen": -1.1 + 0.7 * share + wave,
        "logp_rejected": -2.7 - 2 * share,
        "length_chosen": 9 + 6 * share,
        "length_rejected": 14.0,
        "rollout_gap": 0.05 + abs(wave) / 10,
        "skipped_steps": 1.0 if step > 30 else 0.0,
    }


def run(lines: Iterable[Line], **settings: Any) -> list[Alarm]:
    monitors = Monitors(MonitorSettings(**settings))
    return [alarm for line in lines for alarm in monitors.see(line)]


def ill(**changed: Callable[[int], float]) -> list[Alarm]:
    """40 steps of which those after step 20 have other numbers."""
    lines = [healthy(step) for step in range(1, 41)]
    for line in lines[20:]:
        line |= {key: value(line["step"]) for key, value in changed.items()}
    return run(lines)


def test_a_recorded_run_raises_no_alarm() -> None:
    """80 steps of 12 groups of the embedded world, online DPO; no window of steps comes near a threshold."""
    lines = list(read_lines(Path(__file__).parent / "healthy_run.jsonl"))
    assert len(lines) == 80
    assert run(lines) == []
    settings = MonitorSettings()
    for end in range(settings.window, len(lines) + 1):
        for monitor in MONITORS:
            value = monitor.value(lines[: settings.window], lines[end - settings.window : end])
            assert value is not None
            threshold = getattr(settings, monitor.name)
            assert value > 5 * threshold if monitor.below else value < 0.75 * threshold, monitor.name


def test_a_healthy_run_raises_no_alarm() -> None:
    assert run(healthy(step) for step in range(1, 201)) == []


@pytest.mark.parametrize(
    ("monitor", "changed"),
    [
        # per token: chosen from -0.1 to -0.4, rejected from -0.2 to -0.5
        ("likelihood_displacement", {"logp_chosen": lambda _: -5.0, "logp_rejected": lambda _: -7.0}),
        ("length_bias", {"reward_length_covariance": lambda _: 0.8 * (0.6 * 16) ** 0.5}),
        ("length_gap", {"length_chosen": lambda _: 28.0}),  # twice as long: 14 / 21
        ("reward_drop", {"reward": lambda _: -0.6}),  # early 0.8, early spread 1.9
        ("reward_spread", {"reward_best": lambda _: 1.0, "reward_worst": lambda _: 0.9}),
        ("ties", {"ties": lambda _: 0.99}),
        ("rollout_gap", {"rollout_gap": lambda _: 1.5}),
        ("skipped_steps", {"skipped_steps": lambda step: float((step - 20) // 2)}),
        ("dead_letters", {"dead_letters": lambda _: 3}),
    ],
)
def test_each_monitor_is_tripped_by_its_illness_alone(
    monitor: str, changed: dict[str, Callable[[int], float]]
) -> None:
    (alarm,) = ill(**changed)
    assert alarm.monitor == monitor
    assert alarm.threshold == getattr(MonitorSettings(), monitor)
    assert 20 < alarm.step <= 30
    assert f"step {alarm.step}: {monitor} is " in alarm.text
    assert alarm.advice in alarm.text


def test_every_monitor_has_a_threshold() -> None:
    thresholds = MonitorSettings.model_fields.keys() - {"action", "window"}
    assert {monitor.name for monitor in MONITORS} == thresholds


def test_chosen_answers_that_fall_alone_are_no_displacement() -> None:
    """On-policy answers may become less likely while the policy spreads out; rejected ones then rise."""
    assert ill(logp_chosen=lambda _: -5.0, logp_rejected=lambda _: -1.0) == []


def test_an_alarm_is_raised_again_only_after_it_was_over() -> None:
    """Ten steps of ties, ten without, ten with: two alarms."""
    lines = [healthy(step) | {"ties": 1.0 if step <= 12 or step > 30 else 0.0} for step in range(1, 43)]
    assert [(alarm.monitor, alarm.step) for alarm in run(lines)] == [("ties", 10), ("ties", 40)]


def test_a_monitor_can_be_switched_off_or_told_another_window() -> None:
    lines = [healthy(step) | {"ties": 1.0} for step in range(1, 21)]
    assert run(lines, ties=None) == []
    assert [alarm.step for alarm in run(lines, window=4)] == [4]


def test_metrics_that_a_run_does_not_have_stay_silent() -> None:
    assert run({"step": step, "loss": 1.0} for step in range(1, 41)) == []


def test_steps_that_were_rolled_back_do_not_count() -> None:
    """Steps 11 to 19 with ties only, then trained again without: at no time are ten of the newest ill."""
    ill_ones = [healthy(step) | {"ties": 1.0} for step in range(11, 20)]
    lines = [*map(healthy, range(1, 11)), *ill_ones, *map(healthy, range(11, 30))]
    assert run(lines) == []
    again = [*map(healthy, range(1, 11)), *ill_ones, healthy(20) | {"ties": 1.0}]
    assert [alarm.monitor for alarm in run(again)] == ["ties"]


def test_a_resumed_run_judges_as_one_that_was_not_cut() -> None:
    lines = [healthy(step) | ({"reward": -3.0} if step > 22 else {}) for step in range(1, 41)]
    resumed = Monitors(MonitorSettings())
    for line in lines[:21]:
        resumed.see(line)
    assert [a for line in lines[21:] for a in resumed.see(line)] == run(lines)
