"""Ops on Tm × Tn multiply-accumulate lanes: the groups, the tile and the issue of each.

What differs between equal convolutions of different batches is how often the images in the middle are repeated
(:mod:`jouletrace.mapping.channel_loops`). So a convolution is issued for few images, and what it becomes for any number
follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.channel_loops import FEW, Plan
from jouletrace.mapping.designs import built
from jouletrace.mapping.issue import issuer
from jouletrace.mapping.loops import Loops, loops
from jouletrace.mapping.op_program import OpProgram
from jouletrace.mapping.plan import Base, wanted_share
from jouletrace.mapping.program import OpInfo
from jouletrace.mapping.remembered import Seen, remembered
from jouletrace.mapping.tiles import Tile, choose
from jouletrace.mapping.transfer import Memory, Transfer
from jouletrace.store.settings import is_off
from jouletrace.trace.model import Conv, Op, Trace

__all__ = ["ChannelParallelMapper", "tile_of"]


def tile_of(op: Op, trace: Trace, hardware: Hardware, base: Base | None = None) -> Tile:
    """The tile of an op: that of ``base`` where it fits, else its own.

    Raises :class:`MappingError` for an op that fits no tiling.
    """
    return choose(op, loops(op, trace, hardware), hardware, None if base is None else _tile_of_base(base, hardware))


def _tile_of_base(base: Base, hardware: Hardware) -> Tile | None:
    """What the base op gets; nothing if it fits no tile itself."""
    try:
        return choose(base.op, loops(base.op, base.trace, hardware), hardware)
    except MappingError:
        return None


class ChannelParallelMapper:
    """Maps ops of one program; keeps the issuer, whose pools all ops share."""

    def __init__(self, hardware: Hardware, builder: ProgramBuilder, memory: Memory) -> None:
        assert isinstance(hardware.array, ChannelParallel)
        self.hardware, self.array = hardware, hardware.array
        self._builder, self._memory = builder, memory
        schedule = self.array.schedule
        self._full = schedule.edge_tiles == "full"
        self._issuer = issuer(
            hardware, builder, memory,
            synchronous=schedule.swap == "synchronous", store_at_last=schedule.store_overlaps == "last_compute",
        )  # fmt: skip

    def map(self, op: Op, trace: Trace, tile: Tile, *, is_variant: bool = False) -> int:
        """Emits the op's commands into the builder's open op, in tiles of this size; returns their number.

        ``is_variant`` says that the op is likely to come with many more numbers of images.
        """
        problems = tuple(_groups(op, loops(op, trace, self.hardware)))
        task = _Task(problems, tuple(self._biases(op, trace)), wanted_share(op), tile)
        images = problems[0][0].images
        by_image = None
        if is_variant and images > FEW and not is_off():
            by_image = _by_image(Seen(built(self.hardware), self.hardware), task.of(FEW))
        if by_image is None:
            return self.issue(task)
        body = by_image.of(images)
        self._builder.repeat(body)
        return body.tiles

    def issue(self, task: _Task) -> int:
        """Emits all commands of a task; returns its tiles."""
        tiles = 0
        for transfer in task.biases:
            self._builder.emit([self._memory.command("load bias", transfer)])
        for problem, groups in task.problems:
            plan = Plan(self.hardware, self.array, problem, task.tile, self._full, task.share)
            for _ in range(groups):
                tiles += plan.issue(self._issuer)
        self._issuer.finish()
        return tiles

    def _biases(self, op: Op, trace: Trace) -> Iterator[Transfer]:
        """What follows the two operands comes once, on the weights' stream, into registers beside the lanes."""
        operands = list(zip(op.reads, trace.elements_read(op), trace.bits_read(op), strict=True))
        for name, elements, bits in operands[2:]:
            yield Transfer("weight", "weight", False, trace.tensor[name].role, elements, bits)


# -- any number of images


@dataclass(frozen=True, slots=True)
class _Task:
    """All that the commands of an op follow from: its packed groups and how often each comes, and its tile."""

    problems: tuple[tuple[Loops, int], ...]
    biases: tuple[Transfer, ...]
    share: Fraction
    tile: Tile

    def of(self, images: int) -> _Task:
        """The same for so many images; the MACs, which no command follows from, are left out."""
        return replace(self, problems=tuple([
            (replace(problem, images=images, macs=0), groups) for problem, groups in self.problems
        ]))  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class _ByImage:
    """What an op becomes for at least ``FEW`` images: every further one repeats each run of ``few`` so much more."""

    few: OpProgram
    more_times: tuple[int, ...]
    more_tiles: int

    def of(self, images: int) -> OpProgram:
        """For so many images."""
        more = images - FEW
        times = [run.times + more * each for run, each in zip(self.few.runs, self.more_times, strict=True)]
        return self.few.repeated(times, self.few.tiles + more * self.more_tiles)


@remembered(256)
def _by_image(seen: Seen, few: _Task) -> _ByImage | None:
    """Finds what every further image adds: the difference of the first two numbers of images from ``FEW`` on.

    None where these differ in more than repetitions.
    """
    hardware = seen.hardware
    builder = ProgramBuilder(hardware.name)
    mapper = ChannelParallelMapper(hardware, builder, Memory(hardware, builder))
    found: list[OpProgram] = []
    for task in (few, few.of(FEW + 1)):
        with builder.op(OpInfo("", "", "forward", "conv", macs=0)):
            found.append(builder.recorded(mapper.issue(task)))
    one, next_ = found
    more_times = tuple([then.times - run.times for run, then in zip(one.runs, next_.runs, strict=False)])
    by_image = _ByImage(one, more_times, next_.tiles - one.tiles)
    return by_image if len(one.runs) == len(next_.runs) and by_image.of(FEW + 1) == next_ else None


def _groups(op: Op, whole: Loops) -> Iterator[tuple[Loops, int]]:
    """Equal packed groups and, where the packing leaves a rest, the rest."""
    if whole.packed == 1:
        yield whole, whole.groups
        return
    assert isinstance(op.nest, Conv)  # only convolutions are packed
    total = op.nest.G
    each_out, each_in = whole.out_channels // whole.packed, whole.in_channels // whole.packed
    if total // whole.packed:
        yield whole, total // whole.packed
    rest = total % whole.packed
    if rest:
        yield replace(whole, packed=rest, out_channels=rest * each_out, in_channels=rest * each_in), 1
