"""Reads the text of compiled programs (XLA's HLO): kernels, loops, communication."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """An instruction of a program: its operation, the shape of its result, and the rest."""

    operation: str
    shape: str
    rest: str


Program = Mapping[str, Sequence[Instruction]]
"""Instructions of each computation of a program; that of the whole program is named ``."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_NO_KERNEL = {
    "parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "opt-barrier",
    "partition-id", "while", "call",
}  # fmt: skip
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip


def read_program(text: str, matrix_sizes: set[int], *, in_loop: bool) -> dict[str, Any]:
    """Counts kernels, loop iterations and collectives of a program.

    An instruction in a loop counts as often as the loop runs, or once if that is unknown. Of a
    conditional the longest branch counts.

    Args:
      text: of the compiled program.
      matrix_sizes: all-gathers of as many elements are counted apart.
      in_loop: counts one iteration of the program's loops of unknown length, and nothing else.
    """
    program = parse(text)
    starts = [""]
    if in_loop:
        loops = [each for each in program[""] if each.operation == "while" and not _trips(each)]
        starts = [_called(loop, "body")[0] for loop in loops]
    every = [each for start in starts for each in _walk(program, start)]
    collectives: dict[str, list[int]] = {}
    gathered = 0
    for times, (operation, shape, _) in every:
        name = operation.removesuffix("-start")
        if name in _COLLECTIVES:
            arrays = _arrays(shape)
            if operation in ("all-gather-start", "collective-permute-start"):
                arrays = arrays[len(arrays) // 2 :]  # before them stand the operands
            count, sent = collectives.get(name, (0, 0))
            collectives[name] = [count + times, sent + times * sum(size for _, size in arrays)]
            if name == "all-gather":
                gathered += times * sum(number in matrix_sizes for number, _ in arrays)
    return {
        "kernels": sum(times for times, each in every if each.operation not in _NO_KERNEL),
        "loop_iterations": sum(
            times * _trips(each) for times, each in every if each.operation == "while"
        ),
        "collectives": collectives,
        "gathered_matrices": gathered,
    }


def parse(text: str) -> Program:
    """Instructions of the computations in the text of a compiled program."""
    program: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            instructions = program["" if head[1] else head[2]] = []
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(found[2], found[1], found[3]))
    return program


def _walk(program: Program, name: str, times: int = 1) -> Iterator[tuple[int, Instruction]]:
    """Instructions that a call of a computation executes, with how often it does."""
    for each in program[name]:
        yield times, each
        if each.operation == "while":
            yield from _walk(program, _called(each, "body")[0], times * (_trips(each) or 1))
        elif each.operation == "call":
            yield from _walk(program, _called(each, "to_apply")[0], times)
        elif each.operation == "conditional":
            branches = [list(_walk(program, branch, times)) for branch in _branches(each)]
            yield from max(branches, key=len)
        elif each.operation in ("fusion", "async-start"):
            inside = [fused for called in _called(each, "calls") for fused in program[called]]
            yield from ((times, fused) for fused in inside if fused.operation in _COLLECTIVES)


def _called(instruction: Instruction, attribute: str) -> list[str]:
    return re.findall(rf"(?:{attribute})=%?([\w.\-]+)", instruction.rest)


def _branches(conditional: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{(.*?)\}", conditional.rest)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1])
    return _called(conditional, "true_computation|false_computation")


def _trips(loop: Instruction) -> int:
    """Iterations of a loop; 0 if they are unknown."""
    found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    return int(found[1]) if found else 0


def _arrays(shape: str) -> list[tuple[int, int]]:
    """Numbers of elements and of bytes of the arrays in a shape."""
    arrays = []
    for _, bits, dims in _ARRAY.findall(shape):
        number = math.prod(int(dim) for dim in dims.split(",") if dim)
        arrays.append((number, number * int(bits or 8) // 8))
    return arrays
