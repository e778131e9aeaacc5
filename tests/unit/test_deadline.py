"""A time limit in a process that goes on."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from edgekit.core.deadline import within
from edgekit.errors import TimeLimitError


def overrun(wait):
    with (
        pytest.raises(TimeLimitError, match=r"the build: the time is over \(0.2 s\)"),
        within(0.2, "the build"),
    ):
        wait()


def test_the_main_thread_is_woken_from_its_wait():
    started = time.monotonic()
    overrun(lambda: threading.Event().wait(60))
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_another_thread_is_interrupted_between_instructions():
    failures = []

    def spin():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass

    def work():
        try:
            overrun(spin)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("seconds", [None, 60])
def test_what_ends_in_time_is_left_alone(seconds):
    with within(seconds, "the build"):
        pass
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_code_that_swallows_errors_does_not_swallow_the_end():
    def greedy():
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001
            time.sleep(60)

    overrun(greedy)
