"""Where a model is and what its files say: found and read without any model library."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachekd.data.digests import file_digest, json_id
from cachekd.errors import TeacherError

_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
_SAFETENSORS = ["*.safetensors"]
_BIN = ["pytorch_model*.bin"]
_UNREAD = ["original/*", "consolidated*", "*/*.safetensors"]
_TOKENS = ("bos_token", "eos_token", "pad_token")
_POLICY = (*_TOKENS, "chat_template")
_WITHOUT_DEFAULTS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Folder of a model.

    Args:
        name: a folder, or a hub id such as ``org/model``.
        revision: branch, tag or commit of a hub model.
        weights: False fetches only configuration and tokenizer.

    Raises:
        TeacherError: there is no such folder and no such hub model within reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise TeacherError(f"no such model: {name} is not a folder. Check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=_UNREAD
            )
        )

    try:
        folder = fetch([*_PATTERNS, *_SAFETENSORS] if weights else _PATTERNS)
        if weights and not any(folder.glob("*.safetensors")):
            folder = fetch([*_PATTERNS, *_BIN])
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(
            f"no such model: {name!r} is no local folder, and the hub did not give it "
            f"({type(error).__name__}). Check the name, the revision and HF_TOKEN, or download "
            "it first and pass the folder"
        ) from error


def model_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        TeacherError: missing or not JSON.
    """
    path = folder / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TeacherError(
            f"{folder} is not a model: no config.json in it. Expected a folder that "
            "from_pretrained can load, or a hub id"
        ) from error
    except ValueError as error:
        raise TeacherError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TeacherError(f"{path}: expected a JSON object; found {type(value).__name__}")
    return value


def context_length(config: Mapping[str, Any]) -> int | None:
    """Positions a model was made for, from its configuration; None if it does not say."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"):
        value = config.get(key, inner.get(key))
        if isinstance(value, int) and value > 0:
            return value
    return None


def end_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end what a model writes: of its generation_config.json, else of its config.json.

    Raises:
        TeacherError: generation_config.json is not JSON.
    """
    path = folder / "generation_config.json"
    try:
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} cannot be read: {error}") from error
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    found = own.get("eos_token_id") if isinstance(own, dict) else None
    if found is None:
        found = config.get("eos_token_id", inner.get("eos_token_id"))
    listed = found if isinstance(found, list) else [found]
    return tuple(item for item in listed if isinstance(item, int))


def token_policy(folder: Path) -> dict[str, Any]:
    """What a tokenizer's files say of BOS, EOS, padding and chat template; no more than that.

    Raises:
        TeacherError: a file is not JSON.
    """
    stated: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise TeacherError(f"{path} cannot be read: {error}") from error
        if value.get("tokenizer_class") in _WITHOUT_DEFAULTS:
            stated |= dict.fromkeys(_TOKENS)
        stated |= {key: value[key] for key in _POLICY if key in value}
    template = folder / "chat_template.jinja"
    if template.is_file():
        stated["chat_template"] = template.read_text(encoding="utf-8")
    return {key: v["content"] if isinstance(v, dict) else v for key, v in stated.items()}


def weight_files(folder: Path) -> list[Path]:
    """The weight files that ``from_pretrained`` reads: safetensors, else PyTorch's.

    Raises:
        TeacherError: there are none, or one that the index names is missing.
    """
    for whole in ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / f"{whole}.index.json").is_file():
            return _indexed_files(folder, f"{whole}.index.json")
    raise TeacherError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or their "
        "index with shards"
    )


def _indexed_files(folder: Path, index: str) -> list[Path]:
    try:
        names = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TeacherError(f"{folder / index} is no index of weights: {error!r}") from error
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise TeacherError(f"{folder}: {index} names {', '.join(missing)}, which is missing")
    return sorted(folder / name for name in names)


def code_digest(folder: Path) -> str | None:
    """Digest of the Python files of a model that brings its own code, or None."""
    files = sorted(folder.glob("*.py"))
    return json_id([[path.name, file_digest(path)] for path in files]) if files else None


def weights_digest(folder: Path) -> str:
    """Digest of the contents of all weight files, whatever their names."""
    return json_id(sorted(file_digest(path) for path in weight_files(folder)))


def adapter_facts(folder: Path) -> dict[str, Any]:
    """Digest of a peft adapter's weights and the part of its configuration that matters.

    Raises:
        TeacherError: the folder is no adapter.
    """
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherError(f"{folder} is not a peft adapter: {error}") from error
    ignored = {"base_model_name_or_path", "revision", "inference_mode", "peft_version"}
    settings = {key: value for key, value in settings.items() if key not in ignored}
    return {"weights": weights_digest(folder), "config": settings}


def resolve_dtype(asked: str, config: Mapping[str, Any], folder: Path) -> str:
    """The dtype a teacher is loaded in; ``auto`` is what the checkpoint says or holds."""
    if asked != "auto":
        return asked
    said = config.get("dtype") or config.get("torch_dtype")
    if isinstance(said, str):
        return said.removeprefix("torch.")
    first = weight_files(folder)[0]
    return _stored_dtype(first) if first.suffix == ".safetensors" else "float32"


def _stored_dtype(path: Path) -> str:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, 100_000_000)))
    found = {item["dtype"] for name, item in header.items() if name != "__metadata__"}
    return next((name for code, name in _DTYPES.items() if code in found), "float32")
