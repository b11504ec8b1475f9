"""How commands end: with a sentence and the right exit code, whatever becomes of their output and whoever stops them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples/translation"
BEGIN = f"""
import os, signal, sys, time
sys.path.insert(0, {str(EXAMPLES)!r})
import without_fairseq
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.files.output import checked_file
assert "torch" not in sys.modules
with as_command():
"""


def start(body: str, *before: str, **options: Any) -> subprocess.Popen[str]:
    """A program that does this as a command, in a process of its own."""
    words = [*before, sys.executable, "-c", BEGIN + textwrap.indent(textwrap.dedent(body), "    ")]
    options = {"env": {**os.environ, "PYTHONUNBUFFERED": ""}, "text": True, **options}
    return subprocess.Popen(words, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def end(body: str, *before: str, **options: Any) -> tuple[int, str, str]:
    process = start(body, *before, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], line: str = "go\n") -> None:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    assert process.stdout.readline() == line


@pytest.mark.parametrize("buffer", ["", "1"])
@pytest.mark.parametrize("much", [1, 100_000])
def test_a_stdout_that_takes_no_more_is_a_sentence(much: int, buffer: str):
    environment = {**os.environ, "PYTHONUNBUFFERED": buffer}
    body = f"""
        try:
            print("word\\n" * {much})
        except OSError:  # as around what is read and written
            raise Refusal("the disk")
    """
    with open("/dev/full", "w") as full:
        code, _, err = end(body, stdout=full, env=environment)
    assert (code, err) == (
        2,
        "fairseq_dsp: error: stdout must take what is printed, but does not: No space left on device.\n",
    )
    start, finish = os.pipe()
    os.close(start)
    code, _, err = end(body, stdout=finish, env=environment)
    os.close(finish)
    assert (code, err) == (1, "fairseq_dsp: error: stdout must take what is printed, but does not: Broken pipe.\n")


@pytest.mark.parametrize("name", ["out", "err"])
@pytest.mark.parametrize("full", [True, False])
def test_a_refusal_stays_one_where_nothing_can_be_said(name: str, full: bool):
    where = "/dev/full" if full else "/dev/null"
    with open(where, "w") as file:
        code, out, err = end("print('word'); raise Refusal('no')", **{f"std{name}": file})
    assert code == 2
    assert (err if name == "out" else out) == ("fairseq_dsp: error: no\n" if name == "out" else "word\n")


def test_streams_that_are_closed_from_the_start_are_not_taken_by_files(tmp_path: Path):
    body = f"""
        def content(file):
            print("word"); print("word", file=sys.stderr)
            os.write(1, b"of a library"), os.write(2, b"of a library")
            file.write(b"content")
        checked_file({str(tmp_path / "out")!r}, False).write(content, "it")
    """
    assert end(body, "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh") == (0, "", "")
    assert (tmp_path / "out").read_bytes() == b"content"


def test_a_pipe_that_does_not_wait_is_waited_for():
    begin, finish = os.pipe()
    os.set_blocking(finish, False)
    process = start("print('word ' * 50_000)", stdout=finish)
    os.close(finish)
    with open(begin) as pipe:
        assert len(pipe.read()) == 250_001
    assert (process.wait(timeout=60), process.communicate()[1]) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:surrogateescape", "utf-8", "ascii:replace"])
def test_every_character_is_printed_somehow(encoding: str):
    body = "print('\\u00e9 \\u2026 \\udcff'); print('\\u2026', file=sys.stderr)"
    code, out, err = end(body, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding="latin-1")
    assert (code, err.count("\n")) == (0, 1)
    assert out == ("? ? ?\n" if encoding == "ascii:replace" else out)
    if encoding == "ascii":
        assert (out, err) == ("\\xe9 \\u2026 \\udcff\n", "\\u2026\n")


STOPS = [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_signal_ends_a_writer_that_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path):
    body = f"""
        def content(file):
            file.write(b"half")
            print("go", flush=True)
            try:
                time.sleep(60)
            except BaseException:
                raise RuntimeError("as torch says when its file is not written to")
        checked_file({str(tmp_path / "out")!r}, False).write(content, "it")
    """
    process = start(body)
    wait_for(process)
    assert len(os.listdir(tmp_path)) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == f"fairseq_dsp: error: stopped by {number.name}.\n"
    assert os.listdir(tmp_path) == []


def test_a_second_signal_does_not_disturb_the_tidying():
    body = """
        try:
            print("go", flush=True)
            time.sleep(60)
        finally:
            print("tidies", flush=True)
            time.sleep(0.3)
            print("is tidy", flush=True)
    """
    process = start(body)
    wait_for(process)
    process.send_signal(signal.SIGINT)
    wait_for(process, "tidies\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("is tidy\n", "fairseq_dsp: error: stopped by SIGINT.\n")
    assert process.returncode == -signal.SIGINT


def test_a_shell_sees_130_and_ends_its_loop():
    """It goes on where a command that was interrupted ends as if it had wanted to."""
    loop = 'for i in 1 2; do "$@"; echo "code $?"; done'
    process = start("print('go', flush=True); time.sleep(60)", "bash", "-c", loop, "bash", start_new_session=True)
    wait_for(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("", "fairseq_dsp: error: stopped by SIGINT.\n")
    command = 'trap : INT; "$@"; echo "code $?"'
    process = start("print('go', flush=True); time.sleep(60)", "bash", "-c", command, "bash", start_new_session=True)
    wait_for(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "code 130\n"


def test_signals_that_the_caller_ignores_stay_ignored():
    body = "os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGINT); print('whole')"
    assert end(body, "sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh") == (0, "whole\n", "")


def test_a_child_that_is_forked_in_the_middle_dies_silently():
    body = """
        begin, finish = os.pipe()
        child = os.fork()
        if not child:
            os.write(finish, b"go")
            time.sleep(60)
        os.read(begin, 2)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert end(body) == (0, "-15\n", "")


def test_the_help_of_a_command_that_nobody_reads_to_its_end_is_no_success():
    body = "import argparse; argparse.ArgumentParser().parse_args(['--help'])"
    assert end(body)[0] == 0
    with open("/dev/full", "w") as full:
        assert end(body, stdout=full)[0] == 2
