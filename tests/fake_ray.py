"""A Ray in this process: an actor is an object, whose calls are made when they are waited for.

Actors die where they are told to, as real ones do: the answer is an error of Ray's, the actor
answers nothing more, and what waits for it gets the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """The end of an actor."""


class RayTaskError(RayError):
    """What an actor raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Answer:
    """Of a call; it is made once."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._found: tuple[Any, Exception | None] | None = None

    def get(self) -> Any:
        if self._found is None:
            try:
                self._found = self._call(), None
            except Exception as error:
                self._found = None, error
        value, error = self._found
        if error is not None:
            raise error
        return value


class _Actor:
    def __init__(self, ray: FakeRay, target: Any) -> None:
        self._ray, self._target, self._dead = ray, target, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: _Answer(lambda: self._do(name, args)))

    def _do(self, name: str, args: Sequence[Any]) -> Any:
        self._dead = self._dead or self._ray.dies(name, args)
        if self._dead:
            raise RayError("the actor died, it may have had no memory")
        try:
            return getattr(self._target, name)(*args)
        except Exception as error:
            raise RayTaskError(error) from error


class FakeRay:
    """Stands for the module, connected to a cluster of one node.

    Args:
        dies: whether an actor dies at a call of this name with these arguments.
        cpus: of the node.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, dies: Callable[[str, Sequence[Any]], bool], cpus: int = 1) -> None:
        self.dies, self._cpus = dies, cpus

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self._cpus)}}]

    def remote(self, **_: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda *args: _Actor(self, kind(*args)))

    def put(self, value: Any) -> Any:
        return value

    def kill(self, _: Any) -> None:
        """Nothing is left of it."""

    def wait(self, refs: Sequence[Any], timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        return list(refs[:1]), list(refs[1:])

    def get(self, ref: _Answer) -> Any:
        return ref.get()
