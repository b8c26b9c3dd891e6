"""Choose the block and channels of a bundle, and check its default size and guidance."""

from __future__ import annotations

from intaglio_export.adapters import Adapter
from intaglio_export.bundle.manifest import Suppression
from intaglio_export.calibration.massive import RATIO, ChannelStatistics
from intaglio_export.errors import ExitCode, ExportError, usage_error
from intaglio_export.options import ChannelChoice, ModelSettings


def choose_block(block: int | None, blocks: int) -> int:
    """Return `block`, or the middle block if it is None.

    Raises:
        ExportError: `block` is not in 0..`blocks`-1.
    """
    if block is None:
        return blocks // 2
    if not 0 <= block < blocks:
        raise usage_error(f"--block {block}: the transformer's blocks are 0 to {blocks - 1}.")
    return block


def check_guidance(settings: ModelSettings, adapter: Adapter) -> None:
    """Check that a distilled guidance is only set for a model that takes one.

    Raises:
        ExportError: another model has one.
    """
    if settings.distilled_guidance is not None and adapter.distilled_guidance is None:
        raise ExportError(
            "The settings hold a distilled_guidance, but the model is not guidance-distilled;"
            " remove it and use cfg_scale."
        )


def check_size(settings: ModelSettings, adapter: Adapter) -> None:
    """Check that the model takes the default size of `settings`, or else of the pipeline.

    Raises:
        ExportError: it does not.
    """
    latent, defaults = adapter.latent(), adapter.defaults()
    unit = adapter.size_multiple
    for name, setting, default, largest in (
        ("height", settings.height, defaults.height, latent.max_height),
        ("width", settings.width, defaults.width, latent.max_width),
    ):
        size = default if setting is None else setting
        if size % unit or not unit <= size <= largest:
            raise ExportError(
                f"The {name} {size} of {'the pipeline' if setting is None else 'the settings'} does"
                f' not fit the model; give "{name}" in the file of --settings, a multiple of {unit}'
                f" from {unit} to {largest // unit * unit}."
            )


def choose_channels(
    choice: ChannelChoice,
    block: int,
    statistics: ChannelStatistics,
    ref: list[float] | None = None,
) -> Suppression:
    """Return the channels of `choice` after block `block`, and whether they are massive.

    `ref` holds the values that suppressed channels get, in the order of a list; None means zeros.

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
            raise usage_error(f"--channels top:{choice.count}: the model has {count} channels.")
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
    """Return a remark if the channels of recipe `name` are not the massive channels."""
    block = suppression.block
    found = statistics.massive(block)
    if set(found) == set(suppression.channels):
        return []
    ratios = ", ".join(
        f"{c}: {float(statistics.ratio[block, c]):.1f}" for c in suppression.channels
    )
    measured = f"channels {', '.join(map(str, found[:8]))}" if found else "no channel"
    return [
        f"Recipe {name} disagrees with the measurement: after block {block}, {measured} met the"
        f" definition of massive. The recipe's channels reach ({ratios}) times the median channel,"
        f" and massive channels need {RATIO:g}. --channels auto takes the measured channels."
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
        f"No channel is massive after block {block}: the largest are {candidates}, as multiples of"
        f" the median channel's mean |z|, and massive channels need {RATIO:g}.{hint} To suppress"
        f" channels anyway, give --channels {best[0]} or, for the K largest, --channels top:K."
    )
