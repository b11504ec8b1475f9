import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Read `__version__` from the source text: importing the package would need torch and fairseq."""
    source = (ROOT / "fairseq_dsp" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('fairseq_dsp/version.py has no line `__version__ = "..."`.')
    return match.group(1)


setup(
    name="fairseq-dsp",
    version=read_version(),
    description="Differentiable subset pruning of Transformer heads, as a plug-in for fairseq",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="fairseq_dsp authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["fairseq", "transformer", "attention heads", "pruning", "machine translation"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["fairseq_dsp", "fairseq_dsp.*"]),
    package_data={"fairseq_dsp": ["py.typed"], "fairseq_dsp.analysis": ["*.jinja"]},
    python_requires=">=3.10",
    # Ranges, so that the plug-in fits into an existing environment; constraints.txt has CI's exact versions.
    install_requires=[
        "torch>=2.5,<3",
        "numpy>=1.26,<3",
        "scipy>=1.11,<2",
        "sacrebleu>=2.3,<3",
        "sentencepiece>=0.2,<1",
        "sacremoses>=0.1,<1",
        "subword-nmt>=0.3.8,<1",
        "matplotlib>=3.8,<4",
        "jinja2>=3.1,<4",
        "rich>=13,<16",
    ],
    extras_require={
        # An extra, not a requirement: fairseq-fixed and fairseq both install the package `fairseq`, so requiring
        # it would install over a fairseq that the user already has (0.12.2, a checkout, a fork).
        "fairseq": ["fairseq-fixed==0.12.3.1"],
        "ctranslate2": ["ctranslate2>=4.5"],
        "sweep": ["hydra-submitit-launcher>=1.2,<2"],
        "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=1,<2"],
        "dev": [
            "ctranslate2>=4.5",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "tensorboard>=2.15",
            "hydra-submitit-launcher>=1.2,<2",
            "ruff>=0.12",
            "mypy>=1.15",
            "nox>=2024.3.2",
            "pre-commit>=4",
        ],
    },
    entry_points={
        "console_scripts": [
            "fairseq-dsp-prune = fairseq_dsp.cli.prune:cli_main",
            "fairseq-dsp-score = fairseq_dsp.cli.score:cli_main",
            "fairseq-dsp-average = fairseq_dsp.cli.average:cli_main",
            "fairseq-dsp-merge = fairseq_dsp.cli.merge:cli_main",
            "fairseq-dsp-export = fairseq_dsp.cli.export:cli_main",
            "fairseq-dsp-report = fairseq_dsp.cli.report:cli_main",
            "fairseq-dsp-bench = fairseq_dsp.cli.bench:cli_main",
        ],
    },
)
