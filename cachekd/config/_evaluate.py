"""Settings of ``cachekd evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from cachekd.config._fields import check_choices, option, required
from cachekd.config._inputs import RowsConfig
from cachekd.errors import ConfigError

_GENERATION, _TEACHER = "Generation", "Teacher"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What a preset decides: see the fields of these names of `EvaluateConfig`."""

    prompt_template: str
    truncation_side: str
    no_repeat_ngram_size: int


_DEFAULT = Protocol(prompt_template="auto", truncation_side="left", no_repeat_ngram_size=0)
PRESETS: Mapping[str, Protocol] = MappingProxyType(
    {
        "default": _DEFAULT,
        # The evaluation scripts of MiniLLM and DistiLLM: their default n-gram setting is hidden
        # there, and they cut prompts at the end, so that the marker of the response is lost.
        "paper": Protocol(
            prompt_template="alpaca", truncation_side="right", no_repeat_ngram_size=6
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RowsConfig):
    """Models, data, and how responses are written and judged."""

    model: tuple[str, ...] = required(
        "Model to evaluate: a local folder (of a peft adapter too) or a hub id, PATH or NAME=PATH; "
        "may be repeated.",
        group="Models",
    )
    dtype: str = option(
        "auto",
        "Weights dtype of the models; auto takes the checkpoint's.",
        choices=_DTYPES,
        group="Models",
    )
    device: str | None = option(
        None, "Device, such as cpu or cuda:0; default: cuda if there is one.", group="Models"
    )
    device_map: str | None = option(
        None, "accelerate device map of the models, such as auto.", group="Models"
    )
    attn_implementation: str = option(
        "sdpa",
        "Attention of the models.",
        choices=("sdpa", "eager", "flash_attention_2"),
        group="Models",
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with a model. Off unless asked for.", group="Models"
    )
    data: tuple[str, ...] = required(
        "Prompts with references: JSONL, JSON, CSV or Parquet file, or a datasets name; may be "
        "repeated.",
        group="Data",
    )
    references_column: str | None = option(
        None,
        "Column with the reference, or the list of references, of a row, in place of its response. "
        "Default: its response; of an output that is a list, all of them.",
        group="Data",
    )
    prompt_template: str | None = option(
        None,
        "How instructions become text: the model's chat template, the Alpaca prompt, or plain "
        "concatenation. Default: auto (chat if there is a template, else alpaca); paper: alpaca.",
        choices=("auto", "chat", "alpaca", "plain"),
        group="Data",
    )
    chat_template_path: str | None = option(
        None, "Jinja file used in place of the models' own chat templates.", group="Data"
    )
    add_eos: bool = option(
        True, "End text, prompt/completion and Alpaca references with the EOS token.", group="Data"
    )
    max_prompt_length: int = option(
        256, "Longer prompts are cut to this many tokens, and counted.", group="Data"
    )
    truncation_side: str | None = option(
        None,
        "Side that long prompts lose tokens on. Default: left, the end stays; paper: right.",
        choices=("left", "right"),
        group="Data",
    )
    on_bad: str = option(
        "fail", "What to do with rows that cannot be used.", choices=("fail", "skip"), group="Data"
    )
    preset: str = option(
        "default",
        "Protocol. paper: Alpaca prompt, cut on the right, no_repeat_ngram_size 6, as the scripts "
        "of MiniLLM and DistiLLM do it. Flags of their own go before it.",
        choices=tuple(PRESETS),
        group=_GENERATION,
    )
    seeds: tuple[int, ...] = option(
        (10, 20, 30, 40, 50), "A response to each prompt for each of these.", group=_GENERATION
    )
    greedy: bool = option(
        False, "Write the most probable tokens, once, in place of draws.", group=_GENERATION
    )
    max_new_tokens: int = option(
        256,
        "Most tokens of a response, its end token among them; references are cut to it for "
        "the loss.",
        group=_GENERATION,
    )
    temperature: float = option(
        1.0, "Temperature of the distribution drawn from.", group=_GENERATION
    )
    top_p: float = option(
        1.0, "Draw from the most probable tokens up to this mass.", group=_GENERATION
    )
    top_k: int = option(0, "Draw from the k most probable tokens; 0: from all.", group=_GENERATION)
    no_repeat_ngram_size: int | None = option(
        None,
        "Above 0: write no n-gram of so many tokens twice, those of the prompt among them. "
        "Default: 0; paper: 6.",
        group=_GENERATION,
    )
    batch_tokens: int = option(
        16384, "Token budget of a batch (rows x longest prompt and response).", group=_GENERATION
    )
    teacher: str | None = option(
        None,
        "Teacher: a local folder or a hub id of the models' tokenizer. Adds KL, TVD and ExAccErr.",
        group=_TEACHER,
    )
    teacher_adapter: str | None = option(None, "peft adapter of the teacher.", group=_TEACHER)
    teacher_dtype: str = option(
        "auto", "Weights dtype of the teacher.", choices=_DTYPES, group=_TEACHER
    )
    teacher_device: str | None = option(
        None, "Its device; default: that of the models.", group=_TEACHER
    )
    teacher_device_map: str | None = option(
        None, "accelerate device map, such as auto.", group=_TEACHER
    )
    exaccerr_lengths: tuple[int, ...] = option(
        (16, 50, 100, 200),
        "Response lengths at which ExAccErr is told, up to max_new_tokens.",
        group=_TEACHER,
    )
    cache: str | None = option(
        None,
        "Sealed cache of a teacher of the models' tokenizer: forward KL on its samples.",
        group=_TEACHER,
    )
    label_words: tuple[str, ...] = option(
        (), "Word that is a label, for calibration; repeat it for each label.", group="Calibration"
    )
    label_column: str | None = option(
        None, "Column with the true label word; default: the reference.", group="Calibration"
    )
    out: str | None = option(None, "HTML page to write, with plots.", group="Output")
    markdown: str | None = option(None, "Markdown table to write.", group="Output")
    responses: str | None = option(
        None, "JSONL file to write, with every response beside its references.", group="Output"
    )

    @property
    def protocol(self) -> Protocol:
        """The preset, with what was set beside it."""
        preset = PRESETS[self.preset]
        own = {item.name: getattr(self, item.name) for item in fields(Protocol)}
        chosen = {k: getattr(preset, k) if v is None else v for k, v in own.items()}
        return Protocol(**chosen)

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.model:
            raise ConfigError("model: expected at least one model; found none")
        if self.device and self.device_map:
            raise ConfigError("device and device_map exclude each other; set one")
        if self.teacher_device and self.teacher_device_map:
            raise ConfigError("teacher_device and teacher_device_map exclude each other; set one")
        self._check_drawing()
        self._check_teacher()
        self._check_labels()

    def _check_drawing(self) -> None:
        from_1 = ("max_samples", "max_prompt_length", "max_new_tokens", "batch_tokens")
        from_0 = ("top_k", "no_repeat_ngram_size")
        for name, low in (dict.fromkeys(from_1, 1) | dict.fromkeys(from_0, 0)).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}: expected {low} or more; found {value}")
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(
                f"temperature: expected more than 0; found {self.temperature}. For the most "
                "probable tokens use --greedy"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p: expected 0 < p <= 1; found {self.top_p}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds: expected different seeds, at least one; found {self.seeds}")
        if min(self.seeds) < 0 or max(self.seeds) >= 1 << 63:
            raise ConfigError(f"seeds: expected 0 up to 2^63 - 1; found {self.seeds}")
        if self.greedy:
            self._refuse_idle(("seeds", "temperature", "top_p", "top_k"), "with --greedy")

    def _check_teacher(self) -> None:
        lengths = self.exaccerr_lengths
        if not lengths or min(lengths) < 1 or sorted(set(lengths)) != list(lengths):
            raise ConfigError(
                f"exaccerr_lengths: expected lengths from 1 on, ascending; found {lengths}"
            )
        if self.teacher is None:
            names = [item.name for item in fields(self) if item.name.startswith("teacher_")]
            self._refuse_idle((*names, "exaccerr_lengths"), "without --teacher")

    def _check_labels(self) -> None:
        words = [word.strip() for word in self.label_words]
        if not words:
            self._refuse_idle(("label_column",), "without --label-words")
            return
        if not all(words):
            raise ConfigError(f"label_words: expected words; found an empty one in {words}")
        if len(words) < 2 or len(set(words)) < len(words):
            raise ConfigError(f"label_words: expected two or more different words; found {words}")

    def _refuse_idle(self, names: tuple[str, ...], where: str) -> None:
        """Refuse settings that would do nothing."""
        default = {item.name: item.default for item in fields(self)}
        for name in names:
            if getattr(self, name) != default[name]:
                raise ConfigError(f"{name}: it does nothing {where}; leave it out")
