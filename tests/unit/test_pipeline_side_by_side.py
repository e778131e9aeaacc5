"""Targets side by side: order, bounds, Ctrl-C, and samples that several threads may read."""

from __future__ import annotations

import _thread
import contextlib
import gc
import io
import random
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgekit.core.quiet import silence
from edgekit.core.store import Key, Store
from edgekit.load.data import SampleSet
from edgekit.pipeline import side_by_side as subject
from edgekit.pipeline.cached import NotCachedError, ReadOnly, Step, run
from edgekit.pipeline.side_by_side import side_by_side, spooled, workers
from edgekit.types import Sample


def test_results_are_in_order_and_no_more_run_than_asked_for():
    running, most, lock = 0, 0, threading.Lock()

    def job(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01 * (5 - number))
        with lock:
            running -= 1
        return number

    assert side_by_side([lambda n=n: job(n) for n in range(5)], 2) == [0, 1, 2, 3, 4]
    assert most == 2
    assert side_by_side([], 2) == []


def test_ctrl_c_ends_every_job_through_its_own_cleanup():
    cleaned, started = [], []

    def job(number):
        started.append(number)
        try:
            if number == 1:
                _thread.interrupt_main()
            while True:
                time.sleep(0.001)
        finally:
            cleaned.append(number)

    gc.disable()  # an interrupt inside a collector's callback (hypothesis has one) is lost
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side([lambda n=n: job(n) for n in range(5)], 2)
    finally:
        gc.enable()
    assert sorted(started) == sorted(cleaned) == [0, 1]


def test_a_model_that_is_large_for_this_machine_has_it_alone(tmp_path, monkeypatch):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x" * (1 << 20))
    monkeypatch.setattr(subject.versions, "machine", lambda: {"cpus": 4})
    monkeypatch.setattr(subject, "available_memory", lambda: 1 << 40)
    assert [workers(n, model) for n in (1, 3, 9)] == [1, 3, 4]
    (tmp_path / "model.onnx.data").write_bytes(b"x" * (9 << 20))
    each = subject.ANYWAY + subject.COPIES * (10 << 20)
    for room, count in ((3 * each, 3), (2 * each + 1, 2), (2 * each - 1, 1), (0, 1)):
        monkeypatch.setattr(subject, "available_memory", lambda room=room: room)
        assert workers(9, model) == count


def test_memory_that_the_system_tells_is_a_number():
    assert subject.available_memory() > 1 << 20


def drawn(count=4, *, passes=None):
    """Samples as a data callable of the user's gives them: with the process' one random generator."""

    def opened():
        if passes is not None:
            passes.append(threading.current_thread())
        random.seed(0)
        for i in range(count):
            yield Sample(inputs={"x": np.full((1, 2), random.random(), np.float32)}, label=i)

    return SampleSet(
        origin="calibration", text="f.py:f", fingerprint="f", count=count, labelled=True, open=opened
    )


def test_samples_are_read_once_and_the_same_for_every_thread():
    passes, expected = [], list(drawn())
    with spooled([drawn(passes=passes), drawn(passes=passes)]) as copies:
        rows = side_by_side([lambda: list(copies["f"])] * 6, 3)
    assert passes == [threading.current_thread()]
    for row in rows:
        assert [s.label for s in row] == [0, 1, 2, 3]
        for sample, one in zip(row, expected, strict=True):
            np.testing.assert_array_equal(sample.inputs["x"], one.inputs["x"])
    assert (copies["f"].fingerprint, len(copies["f"]), copies["f"].labelled) == ("f", 4, True)


def test_a_part_of_the_samples_is_spooled_beside_the_whole():
    with spooled([drawn(), drawn().spread(2)]) as copies:
        assert sorted(map(len, copies.values())) == [2, 4]
        assert [s.label for s in copies[drawn().spread(2).fingerprint]] == [0, 2]


def test_samples_that_are_too_large_are_not_written(monkeypatch):
    monkeypatch.setattr(subject, "SPOOL", 4 * 8 - 1)
    with spooled([drawn()]) as copies:
        assert copies is None
    monkeypatch.setattr(subject, "SPOOL", 4 * 8)
    with spooled([drawn()]) as copies:
        assert copies is not None


def step(produce):
    return Step(name="s", inputs=("a",), produce=produce, read=lambda d: (d / "f").read_text())


def test_a_cache_that_is_only_read_does_nothing_and_leaves_nothing(tmp_path):
    produced = step(lambda out: (out / "f").write_text("made"))
    with pytest.raises(NotCachedError):
        run(ReadOnly(Store(tmp_path)), produced)
    assert not list((tmp_path / "steps").rglob("*.json"))
    assert not list((tmp_path / "steps").rglob(".part-*"))
    assert run(Store(tmp_path), produced).value == "made"
    again = run(ReadOnly(Store(tmp_path)), step(lambda out: pytest.fail("it was there")))
    assert again.value == "made"
    assert again.result.cached


def test_a_step_that_two_threads_need_runs_once(tmp_path):
    made = []

    def produce(out):
        made.append(out)
        time.sleep(0.05)
        (out / "f").write_text("made")

    results = side_by_side([lambda: run(Store(tmp_path), step(produce)).value] * 4, 4)
    assert results == ["made"] * 4
    assert len(made) == 1


def test_a_steps_key_names_what_it_depends_on():
    plain = step(lambda _: None)
    other = replace(plain, options={"x": 1}, packages=("numpy",), versions={"runtime": "1"})
    assert isinstance(plain.key, Key)
    assert {"edgekit", "python"} <= set(plain.key.versions)
    assert other.key.versions == dict(plain.key.versions) | {"numpy": np.__version__, "runtime": "1"}
    assert other.key.digest != plain.key.digest


def test_silences_of_several_threads_end_with_the_last(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    first, second, done = threading.Event(), threading.Event(), threading.Event()

    def outer():
        with silence():
            first.set()
            second.wait(5)
        done.set()  # the first to begin ends before the second

    def inner():
        first.wait(5)
        with silence():
            second.set()
            done.wait(5)
            print("not this")

    side_by_side([outer, inner], 2)
    assert sys.stdout is stream
    print("but this")
    assert stream.getvalue() == "but this\n"
    with contextlib.suppress(ValueError), silence():
        raise ValueError
    assert sys.stdout is stream
