"""Chooses what a bundle does by default: block, channels and size, within the model's limits."""

from __future__ import annotations

from intaglio_export.adapters import Adapter
from intaglio_export.bundle.manifest import Suppression
from intaglio_export.calibration.massive import RATIO, ChannelStatistics
from intaglio_export.errors import ExitCode, ExportError, usage_error
from intaglio_export.options import ChannelChoice, ModelSettings


def choose_block(block: int | None, blocks: int) -> int:
    """`block`, or the middle one where nothing is known.

    Raises:
        ExportError: `block` is not in 0..`blocks`-1.
    """
    if block is None:
        return blocks // 2
    if not 0 <= block < blocks:
        raise usage_error(f"--block {block}: the transformer's blocks are 0 to {blocks - 1}.")
    return block


def check_guidance(settings: ModelSettings, adapter: Adapter) -> None:
    """See that a distilled guidance is set for a model that takes one only.

    Raises:
        ExportError: it is not.
    """
    if settings.distilled_guidance is not None and adapter.distilled_guidance is None:
        raise ExportError(
            "The settings give a distilled_guidance, but the model is not guidance-distilled: leave"
            " it out; cfg_scale is true guidance."
        )


def check_size(settings: ModelSettings, adapter: Adapter) -> None:
    """See that the default size, of `settings` or else of the pipeline, is one of the model's.

    Raises:
        ExportError: it is not.
    """
    latent, defaults = adapter.latent(), adapter.defaults()
    unit = latent.vae_scale_factor * adapter.patch_size
    for name, said, default, largest in (
        ("height", settings.height, defaults.height, latent.max_height),
        ("width", settings.width, defaults.width, latent.max_width),
    ):
        size = default if said is None else said
        if size % unit or not unit <= size <= largest:
            raise ExportError(
                f"The {name} {size} of {'the pipeline' if said is None else 'the settings'} does"
                f" not fit the model; give settings with a multiple of {unit} from {unit} to"
                f" {largest // unit * unit}."
            )


def choose_channels(
    choice: ChannelChoice,
    block: int,
    statistics: ChannelStatistics,
    ref: list[float] | None = None,
) -> Suppression:
    """The channels of `choice` after block `block`, and whether they are massive.

    `ref` is what each channel of a list goes to; None stands for zeros.

    Raises:
        ExportError: a channel is out of range, there are no massive channels to choose, or `ref`
            does not fit.
    """
    count = statistics.ratio.shape[1]
    if choice.kind == "auto":
        channels = statistics.massive(block)
        if not channels:
            raise ExportError(_none_massive(block, statistics), ExitCode.BAD_INPUT)
    elif choice.kind == "top":
        if choice.count > count:
            raise usage_error(f"--channels top:{choice.count}: the stream has {count} channels.")
        channels = statistics.largest(block)[: choice.count]
    else:
        channels = list(choice.channels)
        if wrong := [c for c in channels if c >= count]:
            raise usage_error(f"--channels {wrong[0]}: channels are 0 to {count - 1}.")
    if ref is not None and len(ref) != len(channels):
        raise ExportError(
            f"The settings give {len(ref)} values of ref for {len(channels)} channels."
        )
    return Suppression(
        block=block,
        channels=channels,
        found_by=choice.kind,
        massive=all(statistics.is_massive(block, c) for c in channels),
        ratio=[round(float(statistics.ratio[block, c]), 3) for c in channels],
        ref=ref,
    )


def disagreement(name: str, suppression: Suppression, statistics: ChannelStatistics) -> list[str]:
    """A remark if the channels of recipe `name` are not those that are massive here."""
    block = suppression.block
    found = statistics.massive(block)
    if set(found) == set(suppression.channels):
        return []
    ratios = ", ".join(
        f"{c}: {float(statistics.ratio[block, c]):.1f}" for c in suppression.channels
    )
    measured = f"channels {', '.join(map(str, found[:8]))}" if found else "no channel"
    return [
        f"Recipe {name} disagrees with what was measured: after block {block}, {measured} met the"
        f" definition of massive; the recipe's stand at ({ratios}) times the median channel, and"
        f" {RATIO:g} are needed. --channels auto takes the measured ones."
    ]


def _none_massive(block: int, statistics: ChannelStatistics) -> str:
    best = statistics.largest(block)[:4]
    candidates = ", ".join(f"{c} ({float(statistics.ratio[block, c]):.1f})" for c in best)
    elsewhere = statistics.blocks_with_massive()
    hint = (
        f" Blocks {', '.join(map(str, elsewhere))} have some: try --block {elsewhere[0]}."
        if elsewhere
        else ""
    )
    return (
        f"No channel is massive after block {block}: the largest are {candidates}, in times the"
        f" median channel's mean |z|, and {RATIO:g} are needed.{hint} To suppress some of them"
        f" anyway, give --channels {best[0]} or, for the K largest, --channels top:K."
    )
