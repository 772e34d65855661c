"""Which layers and heads of a student learn from which captured ones; pure numbers, no tensors.

In: depths and numbers of heads. Out: pairs of layers, and pairs of groups of heads whose maps are
averaged before they are compared. Averaging is exact mass (a mean of distributions is one), and
weaker as a loss: the KL of means is at most the mean of KLs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachekd.data.attention import AttentionShape, AttentionSpec
from cachekd.errors import MismatchError

MEAN = (-1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """A student's layer, and the place of the captured layer that it learns from."""

    student: int
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGroups:
    """Group g compares the mean of heads ``student[g]`` with the mean of places ``teacher[g]``.

    Attributes:
        student: head numbers of the student.
        teacher: places among the captured heads.
    """

    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMapping:
    """What of a student learns from what of a capture.

    Attributes:
        student: layers and heads of the student.
        layers: pairs of layers.
        heads: groups of heads, the same in every pair.
    """

    student: AttentionShape
    layers: tuple[LayerPair, ...]
    heads: HeadGroups


def map_attention(
    student: AttentionShape, teacher_layers: int, spec: AttentionSpec
) -> AttentionMapping:
    """The mapping of a student to a capture of a teacher of this depth.

    Raises:
        MismatchError: see `map_layers` and `map_heads`.
    """
    return AttentionMapping(
        student=student,
        layers=map_layers(student.layers, teacher_layers, spec.layers),
        heads=map_heads(student.heads, spec.teacher_heads, spec.heads),
    )


def teacher_layer(student: int, student_layers: int, teacher_layers: int) -> int:
    """The layer at the same relative depth: round((j + 1) * L_t / L_s) - 1, halves upwards."""
    return (2 * (student + 1) * teacher_layers + student_layers) // (2 * student_layers) - 1


def map_layers(
    student_layers: int, teacher_layers: int, captured: Sequence[int]
) -> tuple[LayerPair, ...]:
    """Layers of a student whose counterpart was captured.

    Where a student is so deep that several of its layers have one counterpart, the last of them
    learns from it.

    Args:
        student_layers: depth of the student.
        teacher_layers: depth of the teacher.
        captured: layer numbers of the teacher that the cache holds.

    Raises:
        MismatchError: none of the counterparts was captured; names them.
    """
    counterparts = [teacher_layer(j, student_layers, teacher_layers) for j in range(student_layers)]
    last = {layer: j for j, layer in enumerate(counterparts)}
    pairs = [
        LayerPair(student=last[layer], place=place)
        for place, layer in enumerate(captured)
        if layer in last
    ]
    if not pairs:
        raise MismatchError(
            f"a student of {student_layers} layers learns from layers {sorted(last)} of a teacher "
            f"of {teacher_layers}; the cache holds layers {sorted(captured)}. Capture some of the "
            "first with --attention-layers"
        )
    return tuple(sorted(pairs, key=lambda pair: pair.student))


def map_heads(student_heads: int, teacher_heads: int, captured: Sequence[int]) -> HeadGroups:
    """Groups of heads that are compared.

    Equal numbers: one to one, for the captured heads. Numbers of which one divides the other:
    neighbours are averaged on the side that has more. Otherwise, and where the cache holds a mean
    of heads: one group, the mean of all heads on both sides.

    Args:
        student_heads: query heads of a layer of the student.
        teacher_heads: query heads of a layer of the teacher.
        captured: head numbers of the teacher that the cache holds; (-1,) is their mean.

    Raises:
        MismatchError: only some heads were captured, and the numbers of heads differ.
    """
    everything = tuple(range(student_heads))
    if tuple(captured) == MEAN:
        return HeadGroups(student=(everything,), teacher=((0,),))
    if student_heads == teacher_heads:
        return HeadGroups(
            student=tuple((head,) for head in captured),
            teacher=tuple((place,) for place in range(len(captured))),
        )
    if len(captured) != teacher_heads:
        raise MismatchError(
            f"the cache holds heads {list(captured)} of {teacher_heads}, and the student has "
            f"{student_heads}: some heads can only teach a student with as many as the teacher. "
            "Capture --attention-heads all or mean"
        )
    if student_heads % teacher_heads == 0 or teacher_heads % student_heads == 0:
        groups = min(student_heads, teacher_heads)
        return HeadGroups(
            student=_split(student_heads, groups), teacher=_split(teacher_heads, groups)
        )
    return HeadGroups(student=(everything,), teacher=(tuple(range(teacher_heads)),))


def _split(heads: int, groups: int) -> tuple[tuple[int, ...], ...]:
    size = heads // groups
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(groups))
