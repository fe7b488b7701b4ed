"""What PyTorch takes for the same frames, and what the GPU does at best: a product, and a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpu_floors import Peaks
from gpu_measure import IN_FLIGHT, Seconds, clocked, frame_of, percentiles, repeat

if TYPE_CHECKING:
    import torch
    from torch import nn

EAGER: Mapping[str, tuple[str, bool]] = {
    "eager fp32": ("float32", False),
    "eager fp16": ("float16", False),
    "eager fp16 channels_last": ("float16", True),
}
"""Name -> type, and whether channels lie together in memory."""

COMPILED = "compile fp16 channels_last"


def measure_peaks() -> Peaks:
    """Measure a GPU's arithmetic with large products of matrices, and its memory with a large copy.

    The product of two 8192x8192 matrices is bound by arithmetic on every GPU, a copy of 1 GiB by
    memory. The best of many counts, as a floor wants it: products that get hot slow down.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    side = 8192
    flops = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
        made = torch.empty_like(a)
        best = _best_ms(lambda a=a, b=b, made=made: torch.mm(a, b, out=made))  # type: ignore[misc]
        flops[name] = 2 * side**3 / (best / 1e3)
        del a, b, made
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 1 << 30
    if torch.cuda.mem_get_info()[0] < 3 * size:
        size = 1 << 27
    source = torch.randint(256, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = _best_ms(lambda: target.copy_(source))
    name = torch.cuda.get_device_name()
    return Peaks(
        flops=flops,
        bandwidth=2 * size / (best / 1e3),
        source=f"measured on the {name}: products of {side}x{side} matrices, a copy of"
        f" {size >> 20} MiB",
    )


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    import torch

    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return first, second


def _best_ms(call: Callable[[], object], times: int = 30) -> float:
    found: list[float] = []
    for turn in range(times + 5):
        before, after = _events()
        before.record()
        call()
        after.record()
        after.synchronize()
        if turn >= 5:
            found.append(before.elapsed_time(after))
    return min(found)


def framed(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Wrap a network in the frame contract, as engines compute it: uint8 (N, H, W, 3) both ways."""
    import torch
    from torch import Tensor, nn

    class Framed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, frame: Tensor) -> Tensor:
            planes = frame.to(dtype).permute(0, 3, 1, 2)  # (N, 3, H, W)
            made: Tensor = self.network(planes * (1 / 255)) * 255
            return made.clamp(0, 255).round().permute(0, 2, 3, 1).to(torch.uint8)

    return Framed().eval()


def network_of(checkpoint: Mapping[str, Any]) -> nn.Module:
    """Build a network as a bundle's manifest describes it, with seeded random weights.

    Speed does not depend on the weights, and a bundle holds them as ONNX only.
    """
    import torch

    from topcoat.train.networks import build_network

    described = checkpoint["network"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(described["name"], described["settings"]).eval()


def measure_eager(
    checkpoint: Mapping[str, Any], size: tuple[int, int], *, seconds: Seconds
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure PyTorch as it is, in every form of :data:`EAGER`; yield each as it ends."""
    import torch

    torch.backends.cudnn.benchmark = True  # the fastest kernel for the size, searched once
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, (dtype_name, channels_last) in EAGER.items():
        dtype = getattr(torch, dtype_name)
        model = _on_gpu(checkpoint, dtype, channels_last=channels_last)
        try:
            yield name, _measure(model, size, seconds)
        except torch.OutOfMemoryError as error:
            yield name, {"failed": " ".join(str(error).split())[:300]}
        del model
        torch.cuda.empty_cache()


def measure_compiled(
    checkpoint: Mapping[str, Any], size: tuple[int, int], *, seconds: Seconds
) -> dict[str, Any]:
    """Measure ``torch.compile`` with CUDA graphs, fp16, channels last; compiling is on its own."""
    import torch

    torch.backends.cudnn.benchmark = True
    model = _on_gpu(checkpoint, torch.float16, channels_last=True)
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)
    return _measure(compiled, size, seconds)


def _on_gpu(checkpoint: Mapping[str, Any], dtype: torch.dtype, *, channels_last: bool) -> nn.Module:
    import torch

    network = network_of(checkpoint).to("cuda", dtype)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return framed(network, dtype)


def _measure(
    model: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int], seconds: Seconds
) -> dict[str, Any]:
    import torch

    picture = frame_of(*size)[None]
    frame = torch.from_numpy(picture).cuda()
    with torch.inference_mode():
        torch.cuda.reset_peak_memory_stats()

        def one() -> None:
            model(frame)
            torch.cuda.synchronize()

        def host() -> None:  # as a program has it whose frames are on the host
            model(torch.from_numpy(picture).cuda()).cpu()

        first = clocked(one)
        walls = repeat(lambda: clocked(one), seconds)
        hosts = repeat(lambda: clocked(host), seconds)
        per_frame: list[float] = []
        began = time.perf_counter()
        while len(per_frame) < 3 or time.perf_counter() - began < seconds:
            before, after = _events()
            before.record()
            for _ in range(IN_FLIGHT):
                model(frame)
            after.record()
            after.synchronize()
            per_frame.append(before.elapsed_time(after) / IN_FLIGHT)
    return {
        "first_frame_ms": first,
        "device_frames_ms": percentiles(walls),
        "host_frames_ms": percentiles(hosts),
        "device_ms": statistics.median(per_frame),
        "device_bytes": torch.cuda.max_memory_allocated(),
    }
