"""The environments that this package is tested in: `nox` runs main, `nox -s NAME` another, `nox -l` lists them.

docs/compatibility.md says what each gave and when. `nox -R` goes on with the environments that exist. Arguments behind
`--` are pytest's, `nox -s main -- tests/unit` for instance.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.3.2"
nox.options.sessions = ["main"]  # the others download torch with CUDA, several gigabytes
nox.options.reuse_existing_virtualenvs = True

TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "tensorboard", "ctranslate2")
# What setup.py requires besides torch and numpy: the package itself goes in without dependencies, or it would change those.
NEEDS = ("sacrebleu", "sentencepiece", "sacremoses", "subword-nmt", "matplotlib", "jinja2", "rich")


def run_tests(session: nox.Session) -> None:
    """The fast tests, one thread a process."""
    arguments = session.posargs or ["-n", "2"]
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
def main(session: nox.Session) -> None:
    """Python 3.11, torch 2.13, fairseq-fixed 0.12.3.1: what `make test` and CI use, versions of constraints.txt."""
    session.install("-c", "constraints.txt", "setuptools", "wheel", "cython", "numpy")
    session.install("-c", "constraints.txt", "torch")
    # see the Makefile: build isolation fetches a second torch, CUDA_HOME adds sources that the sdist lacks
    session.install("--no-build-isolation", "-c", "constraints.txt", "-e", ".[fairseq,dev]", env={"CUDA_HOME": None})
    run_tests(session)


@nox.session(python="3.12")
def wheel(session: nox.Session) -> None:
    """Python 3.12 and the published wheel of fairseq-fixed 0.12.3.1, which exists for no other Python."""
    session.install("-c", "constraints.txt", "torch", "setuptools", "wheel")
    parts = ["fairseq-fixed", *NEEDS, *TESTS, "hydra-submitit-launcher"]  # the latter not below: it needs hydra 1.1
    session.install("--only-binary", "fairseq-fixed", "-c", "constraints.txt", *parts)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    run_tests(session)


@nox.session(name="fairseq-0.12.2", python="3.10")
def fairseq_0_12_2(session: nox.Session) -> None:
    """Python 3.10, torch 2.5.1, stock fairseq 0.12.2. Started by hand: gigabytes to download.

    A newer pip refuses fairseq's requirement omegaconf<2.1 for invalid metadata.
    """
    session.install("pip==23.0.1")
    session.install("torch==2.5.1", "fairseq==0.12.2")
    session.install("setuptools>=77", "wheel", *NEEDS, *TESTS)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    run_tests(session)
