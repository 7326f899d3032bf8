"""Settings that nobody should have to read: 129 files and command lines, all of which are refused."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

LONG = 100_000  # characters of an argument
NAME = 300  # characters of a name, more than file systems have
SWEEP = "name: s\nvary: {augment.flip: [0, 1]}\n"
TEN = "[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]"


def laughs(values: int = 9, levels: int = 9, kind: str = "[{}]") -> str:
    """Return lines of which each repeats the one before it."""
    lines = [f"a0: &a0 {kind.format(', '.join('x' * values))}"]
    lines += [f"a{n}: &a{n} {kind.format(', '.join([f'*a{n - 1}'] * values))}" for n in range(1, levels + 1)]
    return "\n".join(lines)


def merges() -> str:
    lines = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 10)]
    return "\n".join(["a0: &a0 {x: 1, y: 2}", *lines])


def chain(count: int) -> str:
    return "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, count))])


FILES: dict[str, str | bytes] = {
    # too much
    "laughs": laughs(),
    "laughs in a mapping": laughs(kind="{{a: {}}}").replace("{a: x, x", "{a: x, b: x"),
    "laughs below the run": "run:\n" + "".join(f"  {line}\n" for line in laughs().splitlines()) + SWEEP,
    "laughs of two": laughs(2, 40),
    "laughs by merging": merges(),
    "a chain of aliases": chain(3000),
    "a short chain": chain(60),
    "itself in a list": "a: &a [*a]",
    "itself in a mapping": "method: &a {name: *a}",
    "itself by merging": "method: &a {<<: *a}",
    "each other": "a: &a [&b [*a, *b]]",
    "10,000 lists in each other": "a: " + "[" * 10_000 + "]" * 10_000,
    "10,000 lists that are not closed": "a: " + "[" * 10_000,
    "10,000 mappings in each other": "a: " + "{a: " * 10_000 + "1" + "}" * 10_000,
    "600 sections in each other": "".join(" " * depth + "a:\n" for depth in range(600)),
    "20,000 values": "seed: [" + "1, " * 20_000 + "1]",
    "20,000 keys": "\n".join(f"a{number}: 1" for number in range(20_000)),
    "a megabyte of text": "method: " + "x" * 1_000_000,
    "a megabyte of comments": "# comment\n" * 100_000 + "epochz: 1",
    "a megabyte of spaces": "epochz: 1" + " " * 1_000_000,
    "a long key": "x" * LONG + ": 1",
    "a long text": "tracking: {experiment: " + "x" * LONG + "}",
    "a long name of a method": "method: " + "x" * LONG,
    "a long module": "method: a." + "x" * LONG,
    "a long path of a plugin": "method: ./" + "x" * NAME + ".py",
    "a long source of images": "data: " + "x" * NAME,
    "a long folder of images": "data: {name: folder, root: " + "x" * NAME + "}",
    "a long file of labels": "data: {name: folder, root: ., labels: " + "x" * NAME + ".csv}",
    "a long cache": "data: {cache: " + "x" * LONG + "}",
    "a long folder of runs": "tracking: {runs: " + "x" * NAME + "}",
    "a long store": "tracking: {uri: " + "x" * LONG + "}",
    "a long file of a store": "tracking: {uri: sqlite:///" + "x" * LONG + "}",
    "a long file of weights": "encoder: {name: resnet18, weights: " + "x" * NAME + "}",
    "a long run": "method: finetune\nencoder: {run: " + "x" * NAME + "}",
    "a grid of a billion": "name: s\nvary: {"
    + ", ".join(f"augment.{key}: {TEN}" for key in ("flip", "jitter", "grayscale", "blur", "solarize"))
    + f", seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], optimizer.weight_decay: {TEN}, optimizer.lr: {TEN[4:]}".replace(
        "[,", "["
    )
    + "}",
    "a billion seeds": f"{SWEEP}seeds: 1000000000",
    "a billion trials": "name: s\nsearch: random\ntrials: 1000000000\nvary: {augment.flip: {uniform: [0, 1]}}",
    "a billion trials that learn": "name: s\nsearch: tpe\ntrials: 1000000000\nvary: {augment.flip: {uniform: [0, 1]}}",
    "100 million workers": "workers: 100000000\nbatch_size: 100000000",
    "a billion processes that decode": "data: {name: digits, workers: 1000000000}",
    "a billion threads": "threads: 1000000000",
    "images of a billion pixels a side": "image_size: 1000000000",
    "a number of 5,000 digits": "seed: " + "9" * 5000,
    "5,000 digits in base 16": "seed: 0x" + "f" * 5000,
    "5,000 digits after the point": "method: {temperature: 0." + "1" * 5000 + "}",
    "5,000 digits of seconds": "seed: 1:" + "0" * 5000,
    # code
    "an object": "epochs: !!python/object/apply:os.system ['touch canary']",
    "a new object": "epochs: !!python/object/new:os.system ['touch canary']",
    "a name": "epochs: !!python/name:os.system",
    "a module": "epochs: !!python/module:os",
    "a tag of one's own": "epochs: !run 1",
    "bytes": "method: !!binary dG91Y2ggY2FuYXJ5",
    "a set": "method: !!set {a, b}",
    "a command to run": "notify: touch canary",
    "a command to run after a sweep": f"{SWEEP}notify: touch canary",
    "a command in a trial": "name: s\nrun: {notify: touch canary}\nvary: {augment.flip: [0, 1]}",
    "a command in a variant": "name: s\nvary: {run: [{notify: touch canary}, {epochs: 2}]}",
    "an address to notify of another kind": "notify: ['http://x']",
    "a module of Python as a method": "method: os.path",
    "a method that has a dot first": "method: .simclr",
    "a method of dots": "method: '...'",
    "a file as a method": "method: ../../etc/passwd",
    "a file of the system": "method: /etc/passwd",
    "a device as a plugin": "method: /dev/zero.py",
    "a format": "method: '{0.__class__}'",
    "a shell's command": "method: $(touch canary)",
    "a pipe in a name": "method: '| touch canary'",
    "a method of a wrong kind": "method: [simclr]",
    "a method that is null": "method: null",
    "a method that is a number": "method: 5",
    "a method by a mapping": "method: {name: {name: simclr}}",
    "an evaluator that is none": "evaluate: {also: [os.path]}",
    "a scheduler that is none": f"{SWEEP}scheduler: os.path",
    "a search that is none": f"{SWEEP}search: os.path\ntrials: 2",
    # misleading
    "a key twice": "epochs: 1\nepochs: 2",
    "a key twice in a section": "method: {name: simclr, name: byol}",
    "a number that begins with 0": "epochs: 012",
    "a number with a colon": "epochs: 1:30",
    "a number with two colons": "seed: 1:30:00",
    "a negative octal number": "method: {temperature: -012}",
    "a fraction with a colon": "method: {temperature: 1:30.5}",
    "a word for a number": "epochs: yes",
    "no number": "method: {temperature: .nan}",
    "an infinite number": "method: {temperature: .inf}",
    "a number that is too large": "method: {temperature: 1e400}",
    "a date": "epochs: 2030-01-01",
    "no date": "epochs: 2030-13-01",
    "half a character": 'method: "\\ud83c"',
    "a zero in a name": 'method: "a\\0b"',
    "a zero in a path": 'data: {name: folder, root: "a\\0b"}',
    "a zero in a folder of runs": 'tracking: {runs: "a\\0b"}',
    "a zero in a store": 'tracking: {uri: "sqlite:///a\\0b"}',
    "escapes in a name": 'method: "\\e[2J\\e]0;owned\\a"',
    "escapes in a key": '"\\e[2J": 1',
    "escapes in an experiment": 'tracking: {experiment: "a\\e[2J"}',
    "a name that turns the line": 'method: "\\u202ecod.exe"',
    # places
    "a sweep above": "name: '..'\nvary: {augment.flip: [0, 1]}",
    "a sweep elsewhere": "name: ../../canary\nvary: {augment.flip: [0, 1]}",
    "a sweep at the root": "name: /canary\nvary: {augment.flip: [0, 1]}",
    "a sweep of nothing": "name: ''\nvary: {augment.flip: [0, 1]}",
    "an experiment above": "tracking: {experiment: '..'}",
    "runs above a bucket": "tracking: {runs: 's3://bucket/../runs'}",
    "runs at an address": "tracking: {runs: 'http://127.0.0.1/runs'}",
    "runs at a file's address": "tracking: {runs: 'file:///tmp/runs'}",
    "runs in the kernel": "tracking: {runs: /proc/self/runs}",
    "runs in a device": "tracking: {runs: /dev/null}",
    "a store of files": "tracking: {uri: 'ftp://host/path'}",
    "a store that is a folder": "tracking: {uri: 'file:///tmp/mlruns'}",
    "a store of a shell": "tracking: {uri: '$(touch canary)'}",
    "images in the kernel": "data: {name: folder, root: /proc/self/fd}",
    "images in a device": "data: {name: folder, root: /dev/zero}",
    "labels of a device": "data: {name: folder, root: ., labels: /dev/zero.csv}",
    # no settings
    "bytes of nothing": b"\0" * 1000,
    "bytes of chance": bytes(range(256)) * 4,
    "UTF-16": "epochs: 1".encode("utf-16"),
    "two documents": "epochs: 1\n---\nepochs: 2",
    "a directive": "%YAML 9.9\n---\nepochs: 1",
    "a list": "- 1",
}


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


MADE: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": listening,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": lambda path: path.mkdir(),
    "a sparse file of 8 GiB": lambda path: (path.touch(), os.truncate(path, 8 * 2**30)),
}
LINES: dict[str, list[str]] = {
    "a long setting": ["train", "x" * LONG],
    "a long key of a setting": ["train", "x" * LONG + "=1"],
    "a long value": ["train", "seed=" + "9" * LONG],
    "a key of 10,000 parts": ["train", "a." * 10_000 + "a=1"],
    "lists in each other": ["train", "seed=" + "[" * LONG],
}
