"""Where a network to export comes from: one class for all of them, and what recognises a file.

The exporter proves engines equal to a *source*: a network that answers frames, a way to make ONNX
of it, and what is known of its origin. A further kind of file is one module that makes a
:class:`Source` of it and one line in :func:`open_source`.
"""

import os
from pathlib import Path

from topcoat.export.sources import fast_neural_style, spandrel_network
from topcoat.export.sources._onnx_graph import ChannelOrder, ValueRange
from topcoat.export.sources._source import Source, SourceError, to_onnx_of
from topcoat.export.sources.onnx_file import open_onnx
from topcoat.export.sources.weights_file import (
    WANTED,
    read_weights_file,
    refuse_unsuitable,
    state_dict_of,
)
from topcoat.train import Checkpoint, load_checkpoint
from topcoat.train.checkpoint import FORMAT
from topcoat.train.pictures import file_sha256

__all__ = ["Source", "SourceError", "open_source", "source_from_checkpoint"]


def source_from_checkpoint(checkpoint: Checkpoint, sha256: str | None = None) -> Source:
    """Take a network that Topcoat trained.

    Args:
        checkpoint: what ``train-style``, ``train-sr`` or ``train-texture`` wrote.
        sha256: of its file.

    Raises:
        topcoat.train.CheckpointError: the weights do not fit the network.
    """
    network = checkpoint.build_network()
    return Source(
        network=network,
        task=checkpoint.task,
        name=str(checkpoint.network["name"]),
        settings=dict(checkpoint.network["settings"]),
        parameters=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        to_onnx=to_onnx_of(network, checkpoint.task),
        sha256=sha256,
        recipe=checkpoint.recipe,
        step=checkpoint.step,
        style=checkpoint.style,
        history=checkpoint.history,
    )


def open_source(
    path: str | os.PathLike[str],
    *,
    value_range: ValueRange | None = None,
    channel_order: ChannelOrder | None = None,
) -> Source:
    """Read a file that holds a network; nothing in it is executed.

    Args:
        path: a checkpoint of Topcoat's, weights of a network that docs/models.md lists, or an ONNX
            file that turns one picture into one.
        value_range: of an ONNX file: what white is at its input, 1 or 255; None: as the file says,
            or as running it shows.
        channel_order: of an ONNX file: ``rgb`` or ``bgr``; None: as the file says, otherwise RGB.

    Raises:
        SourceError: it holds no network that is known, or one that cannot become a bundle; the
            text says why, and what to do.
        topcoat.train.CheckpointError: it is a checkpoint of Topcoat's that cannot be used, a
            folder, or not there.
    """
    path = Path(path)
    if not path.is_file():
        return source_from_checkpoint(load_checkpoint(path))  # which says what is wrong
    if path.suffix.lower() == ".onnx":
        return open_onnx(
            path, file_sha256(path), value_range=value_range, channel_order=channel_order
        )
    if value_range is not None or channel_order is not None:
        raise SourceError(
            f"{path} is no ONNX file (.onnx): the range and the order of the colours of all other "
            "kinds are known; leave out --range and --channel-order"
        )
    content = read_weights_file(path)
    sha256 = file_sha256(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return source_from_checkpoint(load_checkpoint(path), sha256)
    weights = state_dict_of(content)
    if weights is None:
        raise SourceError(f"{path} holds values, but no weights of one network; {WANTED}")
    refuse_unsuitable(path, weights)
    for recognise in (fast_neural_style.recognise, spandrel_network.recognise):
        source = recognise(path, weights, sha256)
        if source is not None:
            return source
    keys = ", ".join(list(weights)[:3])
    near = spandrel_network.nearest(weights)
    if near is not None:
        raise SourceError(f"{path} looks like a network of the kind {near}; get the whole file")
    more = spandrel_network.obstacle() or (
        "none of the architectures that Topcoat and spandrel know has such keys"
    )
    raise SourceError(
        f"{path} holds another project's weights ({len(weights)} keys: {keys}, …), and {more}; "
        "export the network to ONNX with the code that it was trained with, and give that"
    )
