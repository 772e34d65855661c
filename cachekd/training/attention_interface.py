"""Where a student's attention can be heard: transformers' attention interface, and its proof.

In: a model of transformers. Out: whoever registered for one of its attention modules is called with
queries and keys after RoPE, whatever attention the model runs; and a comparison of the model's own
eager maps with those that follow from queries and keys alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cachekd.data.attention import eager_attention
from cachekd.errors import MismatchError

EAGER = "cachekd_student_eager"
_SHORT = 24


class Listener(Protocol):
    """What hears the attention of modules; it must not hold them."""

    def take(self, module: Any, query: Tensor, key: Tensor, settings: dict[str, Any]) -> None:
        """Queries [B, H, T, D], keys [B, G, T, D] and keyword arguments of an attention call."""
        ...

    def compare(
        self, module: Any, query: Tensor, key: Tensor, maps: Any, settings: dict[str, Any]
    ) -> None:
        """The same of eager attention, with its maps [B, H, T, T], after the call."""
        ...


_LISTENERS: WeakKeyDictionary[Any, Listener] = WeakKeyDictionary()


def plain(model: Any) -> Any:
    """The model of transformers inside DDP and peft."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def listen(model: Any, listener: Listener) -> None:
    """Call the listener from now on for each attention module of the model.

    The implementation keeps its name, which models and kernels ask for; other models that use it
    notice nothing. Only eager attention, which has no entry to stand before, gets one of its own.

    Raises:
        MismatchError: the model does not use transformers' attention interface.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            _LISTENERS[module] = listener
    name = model.config._attn_implementation
    if name == "eager":
        _set_eager(model)
        return
    found = ALL_ATTENTION_FUNCTIONS.get(name)
    if not isinstance(found, _Heard):
        ALL_ATTENTION_FUNCTIONS.register(name, _Heard(found))


def run_eager(model: Any) -> None:
    """One short forward pass with eager attention, for the listener to `compare`.

    Raises:
        MismatchError: the model does not use transformers' attention interface.
    """
    usual = model.config._attn_implementation
    training = model.training
    embedding = model.get_input_embeddings()
    length = min(_SHORT, getattr(model.config, "max_position_embeddings", _SHORT))
    ids = torch.arange(length, device=embedding.weight.device)[None] * 7 + 1
    _set_eager(model)
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=ids % embedding.num_embeddings, use_cache=False)
    finally:
        model.train(training)
        if usual != EAGER:
            model.set_attn_implementation(usual)


def silent(name: str) -> MismatchError:
    """Of a model whose attention cannot be heard."""
    return MismatchError(
        f"attention of {name} cannot be seen: it does not go through transformers' attention "
        "interface. Train without attention loss, or use another student"
    )


class _Heard:
    """An attention function that lets a listener, if the module has one, see queries and keys.

    Args:
        function: the implementation; None is the eager one of each module's own file.
    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._function = function

    def __call__(self, module: Any, query: Tensor, key: Tensor, *rest: Any, **settings: Any) -> Any:
        function = self._function or _eager(module)
        listener = _LISTENERS.get(module)
        if listener is not None:
            listener.take(module, query, key, settings)
        output = function(module, query, key, *rest, **settings)
        if listener is not None and self._function is None:
            listener.compare(module, query, key, output[1], settings)
        return output


def _set_eager(model: Any) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(EAGER, _Heard(None))
    ALL_MASK_ATTENTION_FUNCTIONS.register(EAGER, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    try:
        model.set_attn_implementation(EAGER)
    except (ValueError, AttributeError, KeyError, ImportError) as error:
        raise silent(type(model).__name__) from error
    if model.config._attn_implementation != EAGER:
        raise silent(type(model).__name__)


def _eager(module: Any) -> Callable[..., Any]:
    found = eager_attention(module)
    if found is None:
        raise silent(type(module).__name__)
    return found
