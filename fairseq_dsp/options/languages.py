"""What a task's options say of its languages, for fairseq's `translation_multi_simple_epoch`: pairs, and tokens of languages.

One model translates between all of the pairs. A token before a sentence tells it the language; tokens follow the dictionary's words
in the order of the languages, so that another order is another model. Asked by the task, by whatever goes on from a checkpoint, and by
all that make batches or export for one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.data.multilingual.multilingual_utils import LangTokSpec, get_lang_tok

from fairseq_dsp.config import flag, get_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.records import TaskOptions, saved_options

BILINGUAL, BILINGUAL_BUDGET = "translation", "translation_dsp"
MULTILINGUAL, MULTILINGUAL_BUDGET = "translation_multi_simple_epoch", "translation_multi_simple_epoch_dsp"
BUDGET_TASKS = (BILINGUAL_BUDGET, MULTILINGUAL_BUDGET)
# Where a task with a budget leaves its name in the model's cfg, beside fairseq's own `task`, which a command that loads a model may
# change.
BUDGET_TASK = "budget_task"
_A_MODEL_A_PAIR = "multilingual_translation"


@dataclass(frozen=True)
class Languages:
    """Languages of a multilingual model.

    Attributes:
        names: in the order of their tokens.
        pairs: that it is trained on, as `en-de`.
        source_token: whose token stands before a source, as `--langtoks` says it: `src`, `tgt`, with a kind `src.dae`, or None for no token.
        target_token: likewise of a target, where it is always that of the target language.
        style: of the tokens, `multilingual` (`__de__`) or `mbart` (`[de]`).
        kinds: of tokens, each of which every language has one of (`--langtoks-specs`), in the order of their numbers.
        replaces_ends: tokens take the place of the end of a source and of the beginning of a target.
    """

    names: tuple[str, ...]
    pairs: tuple[str, ...]
    source_token: str | None
    target_token: str | None
    style: str
    kinds: tuple[str, ...]
    replaces_ends: bool

    @property
    def tells_target(self) -> bool:
        """Whether a token tells the model which language it is to translate to."""
        return self.target_token is not None or self.source_token is not None and not self._of_source()

    @property
    def replaced_ends(self) -> tuple[bool, bool]:
        """Whether tokens take the place of the end of a source, and of the beginning of a target."""
        return tuple(self.replaces_ends and token is not None for token in (self.source_token, self.target_token))

    def around(self, source: str, target: str) -> dict[str, list[str]]:
        """What sentences of a pair have beside their words.

        Returns:
            the words before a source (`source`) and before a translation (`target`); and of a model whose tokens take the place of ends, what
            a source ends with (`source_end`) and what a translation begins after (`target_start`), empty where that is the end of a sentence.
        """
        tokens = [self._token(source if self._of_source() else target, self.source_token)]
        tokens.append(self._token(target, self.target_token))
        if self.replaces_ends:
            return {"source": [], "target": [], "source_end": tokens[0], "target_start": tokens[1]}
        return {"source": tokens[0], "target": tokens[1]}

    def _of_source(self) -> bool:
        return str(self.source_token).startswith("src")

    def _token(self, language: str, kind: str | None) -> list[str]:
        return [] if kind is None else [get_lang_tok(lang=language, lang_tok_style=self.style, spec=kind)]


def task_of(options: Any) -> str | None:
    """The name of the task whose options these are."""
    name = get_option(options, "_name") or get_option(options, "task")
    return name if isinstance(name, str) else None


def languages_of(options: Any) -> Languages | None:
    """What the options of a multilingual task say; None for those of another task.

    Raises:
        Refusal: they do not tell the languages.
    """
    return _read(options) if task_of(options) in (MULTILINGUAL, MULTILINGUAL_BUDGET) else None


def languages_of_model(cfg: Any) -> Languages | None:
    """What a model's cfg says of the languages that it was trained on; None where another task trained it.

    Raises:
        Refusal: see `languages_of`.
    """
    task = get_option(cfg, BUDGET_TASK) or get_option(cfg, "task")
    return _read(cfg) if task in (MULTILINGUAL, MULTILINGUAL_BUDGET) else None


def _read(options: Any) -> Languages:
    pairs = language_pairs(get_option(options, "lang_pairs"))
    tokens = (get_option(options, "langtoks") or {}).get("main")
    source, target = tokens or (get_option(options, "encoder_langtok"), get_option(options, "decoder_langtok", False))
    return Languages(
        _names(options, pairs),
        pairs,
        str(source) if source else None,
        ("tgt" if target is True else str(target)) if target else None,
        str(get_option(options, "lang_tok_style", "multilingual")),
        tuple(get_option(options, "langtoks_specs") or (LangTokSpec.main.value,)),
        bool(get_option(options, "lang_tok_replacing_bos_eos", False)),
    )


def language_pairs(given: str | Sequence[str] | None, option: str = "lang_pairs") -> tuple[str, ...]:
    """Language pairs, as an option names them.

    Raises:
        Refusal: there are none, one is named twice, or one is no pair.
    """
    pairs = tuple(given.split(",") if isinstance(given, str) else given or ())
    if not pairs or len(set(pairs)) < len(pairs) or not all(re.fullmatch(r"[^-]+-[^-]+", pair) for pair in pairs):
        rule = "language pairs with commas between, as en-de,en-fr, each once"
        raise Refusal(f"{flag(option)} must be {rule}, but is {','.join(pairs) if pairs else 'not given'}.")
    return pairs


def objections_to_task(cfg: Any, who: str, several: bool = True) -> list[str]:
    """Sentences on a checkpoint's task, where sentences are to be read as it reads them.

    Tasks that are not known may put a token before or behind a sentence, join or change dictionaries, or have no target.

    Args:
        cfg: the task's options.
        who: the option that reads data, for the sentence.
        several: whether it knows several language pairs.
    """
    name = task_of(cfg)
    known = (BILINGUAL, BILINGUAL_BUDGET, MULTILINGUAL, MULTILINGUAL_BUDGET)[: 4 if several else 2]
    if name in known:
        return []
    return [f"{who} needs a model of the task {', '.join(known[:-1])} or {known[-1]}, but it is {name}."]


def objections_to_model_a_pair(task: str | None) -> list[str]:
    """The sentence on fairseq's task that has a model for each language pair."""
    if task != _A_MODEL_A_PAIR:
        return []
    return [
        f"`--task` must be {MULTILINGUAL_BUDGET} for several language pairs, for one model translates them all and has the "
        f"heads, but is {task}, which has a model a pair."
    ]


def objections_to_other_languages(trained: Languages, now: Languages, what: str) -> list[str]:
    """Sentences on languages or tokens that are not those of a model.

    Args:
        trained: the model's.
        now: those with which it would be used.
        what: names the model, for the sentence.
    """
    if trained.names != now.names:
        order = " in another order" if sorted(trained.names) == sorted(now.names) else ""
        return [
            f"`--langs` must be {','.join(trained.names)}, as {what} was trained, for the order numbers the tokens of the "
            f"languages, but is {','.join(now.names)}{order and ','}{order}."
        ]
    values = {
        **_said_of_tokens(trained, now),
        "lang_tok_style": (trained.style, now.style),
        "langtoks_specs": (",".join(trained.kinds), ",".join(now.kinds)),
        "lang_tok_replacing_bos_eos": (trained.replaces_ends, now.replaces_ends),
    }
    return [
        f"{flag(name)} must be {before}, as {what} was trained, but is {value}."
        for name, (before, value) in values.items()
        if before != value
    ]


def objections_to_use(cfg: Any, options: Any) -> list[str]:
    """Sentences on languages of a task that would use a model, where they are not those that it was trained on.

    Args:
        cfg: the model's.
        options: the task's; None where there are none.
    """
    trained, now = languages_of_model(cfg), languages_of(options)
    return [] if trained is None or now is None else objections_to_other_languages(trained, now, "the model")


def objections_to_going_on(state: Mapping[str, Any], cfg: Any, path: str) -> list[str]:
    """Likewise of a training that starts from a checkpoint.

    Args:
        state: what the checkpoint holds.
        cfg: of the model that is trained.
        path: the checkpoint's.
    """
    trained, now = languages_of(saved_options(state, "task")), languages_of_model(cfg)
    return [] if trained is None or now is None else objections_to_other_languages(trained, now, path)


def objections_to_differences(found: Mapping[str, Languages | None]) -> list[str]:
    """Sentences on checkpoints whose words before a sentence mean something else than the first one's.

    Args:
        found: by path; None of a checkpoint of one language pair.
    """
    reasons = []
    paths = list(found)
    for path in paths[1:]:
        first, other = found[paths[0]], found[path]
        if first is not None and other is not None:
            reasons += objections_to_other_languages(first, other, paths[0])
        elif first is not None or other is not None:
            several, one = (path, paths[0]) if first is None else (paths[0], path)
            reasons.append(
                f"all checkpoints must be of one task, but {several} is of several language pairs and {one} is not."
            )
    return reasons


def pair_of(options: Any) -> tuple[str, str] | None:
    """Source and target language of a task of one pair; None where its options leave one open, and of other tasks."""
    if task_of(options) not in (BILINGUAL, BILINGUAL_BUDGET):
        return None
    source, target = TaskOptions.of(options).languages
    return (source, target) if source and target else None


def objections_to_other_pairs(found: Mapping[str, tuple[str, str] | None]) -> list[str]:
    """Sentences on checkpoints of one pair each, where the pair is not the first one's.

    Args:
        found: `pair_of` each, by path.
    """
    said = {path: "-".join(pair) for path, pair in found.items() if pair is not None}
    return [
        f"all checkpoints must translate one language pair, but {path} translates {other}, and {first} {said[first]}."
        for first in list(said)[:1]
        for path, other in said.items()
        if other != said[first]
    ]


def _said_of_tokens(*found: Languages) -> dict[str, tuple[Any, ...]]:
    """What each says of its tokens, by the option: of the plain ones two options, of tokens of a kind `--langtoks` alone."""
    tokens = [(each.source_token, each.target_token) for each in found]
    if {*itertools.chain(*tokens)} <= {None, "src", "tgt"}:
        sources, targets = zip(*tokens, strict=True)
        return {"encoder_langtok": sources, "decoder_langtok": tuple(target is not None for target in targets)}
    return {"langtoks": tuple({"main": pair} for pair in tokens)}


def _names(options: Any, pairs: Sequence[str]) -> tuple[str, ...]:
    """As fairseq finds them: a list, the lines of a file, or the pairs' in alphabetical order."""
    listed, path = get_option(options, "langs"), get_option(options, "lang_dict")
    if listed:
        return tuple(listed.split(",") if isinstance(listed, str) else listed)
    if path is None:
        return tuple(sorted({name for pair in pairs for name in pair.split("-")}))
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            f"`--lang-dict` must be a file with a language a line, but {path} cannot be read: {error}."
        ) from error
