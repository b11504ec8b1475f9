"""Options and fixtures of all tests. Slow tests run with `pytest --slow` (`make test-slow`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import devices
import pytest
import torch
from fairseq.models.transformer import TransformerModel

import fairseq_dsp  # noqa: F401  silences what it silences for users, and registers our model
from fairseq_dsp.plugin.model import DspTransformerModel

_LEVELS = {logger: logger.level for logger in map(logging.getLogger, ("fairseq", "hydra", "sacrebleu"))}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption(
        "--device",
        default="cpu",
        help="run unit and conformance tests on this device: cpu, cuda, or pretended, which needs no accelerator",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        devices.choose(config.getoption("--device"))  # before test files are read, which make tensors
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise pytest.UsageError(f"--device must be one that torch has here: {error}") from error
    # Commands run in forks, and a fork of a process whose threads have worked waits for them for ever.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    if config.getoption("--device") != "cpu":
        skip = pytest.mark.skip(reason="runs commands, which are given --cpu")
        for item in items:
            if item.path.parent.name not in devices.TIERS:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def talkers() -> Iterator[None]:
    """What a command that ran in this process did not want to hear, a test hears: it may have run in a fixture too."""
    for logger, level in _LEVELS.items():
        logger.setLevel(level)
    yield
    for logger, level in _LEVELS.items():
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def stock_models_generate() -> None:
    """Switches off the fused encoder of stock fairseq 0.12.2's own models, with which they stop on today's torch ("Mask Type
    should be defined"), so that ours can be compared with them. Ours are left as they are: they must do without by themselves.
    """
    build = TransformerModel.build_model.__func__

    def build_model(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model = build(cls, *args, **kwargs)
        if not issubclass(cls, DspTransformerModel):
            for layer in (model.encoder.layers[index] for index in range(len(model.encoder.layers))):
                if hasattr(layer, "can_use_fastpath"):
                    layer.can_use_fastpath = False
        return model

    TransformerModel.build_model = classmethod(build_model)
