"""Signals that ask a run to stop."""

import signal
import threading

import pytest

from altclip_jax.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_of_before_come_back(number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_that_was_not_set_from_python_becomes_the_default(monkeypatch):
    now = {signal.SIGTERM: None, signal.SIGINT: signal.SIG_IGN}  # None is how Python speaks of such a handler

    def replaced(number, handler):
        if handler is None:
            raise TypeError("signal handler must be callable")
        before, now[number] = now[number], handler
        return before

    monkeypatch.setattr(signal, "signal", replaced)
    with StopRequest():
        pass
    assert now == {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_IGN}


def test_in_another_thread_it_waits_for_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
