"""Signals that end a program from outside act like Ctrl-C, however the program was started."""

import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

PROGRAM = textwrap.dedent("""
    import signal, sys
    for number in map(int, sys.argv[1].split()):
        signal.signal(number, signal.SIG_IGN)  # as a shell or nohup starts it
    from eagleray.runs.signals import as_interrupts
    as_interrupts()
    try:
        print("ready", flush=True)
        sys.stdin.read()
        print("went on")
    except KeyboardInterrupt:
        print("interrupted")
""")


def told(sent: signal.Signals, *ignored: signal.Signals) -> str:
    """Return the output of the program after this signal."""
    numbers = " ".join(str(int(number)) for number in ignored)
    command = [sys.executable, "-c", PROGRAM, numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        said, _ = process.communicate(timeout=60)  # closes its input, so that it ends in any case
    assert process.returncode == 0
    return said.strip()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_interrupts(sent: signal.Signals):
    assert told(sent) == "interrupted"


def test_it_interrupts_a_program_that_ignores_ctrl_c():
    assert told(signal.SIGTERM, signal.SIGINT) == "interrupted"


def test_nohup_is_honoured():
    assert told(signal.SIGHUP, signal.SIGHUP) == "went on"
