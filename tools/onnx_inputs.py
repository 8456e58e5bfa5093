"""Inputs for ONNX files that nobody described: of sizes that onnxruntime runs, pictures where they have the form of pictures."""

from __future__ import annotations

import itertools
import math
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lfpgraph.errors import one_line

# Sizes for axes that the files leave open, by package and input. For other files they are tried: see `_inputs`.
VOICE: dict[str, tuple[int, ...]] = {"input": (1, 576), "state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
SIZES = {
    "silero-vad": VOICE,
    "livekit-plugins-silero": VOICE,
    "pipecat-ai": VOICE,
    "swift-f0": {"audio": (1, 8000)},
    "speechmos": {"input": (1, 3, 32, 160), "degraded_audio": (2, 1, 32, 257)},
}
NUMBERS = {"sr": 16000, "fmin": 46.875, "fmax": 2093.75}
TYPES = {"float": torch.float32, "float16": torch.float16, "double": torch.float64, "int32": torch.int32, "uint8": torch.uint8,
         "bool": torch.bool, "int64": torch.int64}  # fmt: skip
LARGE = 200_000  # numbers in an input; a file with more gets a batch of one


def _picture(height: int, width: int, seed: int) -> Tensor:
    """Lines of dark text on paper with soft stains: [3, height, width], from -1 to 1."""
    draw, words = np.random.default_rng(seed), random.Random(seed)
    stains = Image.fromarray(draw.integers(150, 255, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    size = max(10, height * 6 // 10 if height <= 64 else height // 8)
    for top in range(max(0, (height - size) // 4), max(1, height - size // 2), size * 3 // 2):
        line = "".join(words.choices(string.ascii_letters + string.digits + " ", k=2 + 2 * width // size))
        ImageDraw.Draw(stains).text((3, top), line, fill=(20, 20, 40), font=ImageFont.load_default(size))
    pixels = np.asarray(stains, np.float32) + draw.normal(0, 4, (height, width, 1)).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).clamp(-1, 1)


def _stamped(size: int, seed: int) -> Tensor:
    """Text under a round red stamp with letters along its edge, for what looks for seals: [3, size, size]."""
    page = Image.fromarray(((_picture(size, size, seed).permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8))
    red, edge, font = (200, 30, 30), size // 10, ImageFont.load_default(max(10, size // 9))
    ImageDraw.Draw(page).ellipse((edge, edge, size - edge, size - edge), outline=red, width=max(2, size // 40))
    for place, letter in enumerate("COMPANY SEAL 12345"):
        angle = math.pi * (0.85 + 1.3 * place / 17)
        tile = Image.new("L", (size // 6, size // 6))
        ImageDraw.Draw(tile).text((size // 24, size // 48), letter, fill=255, font=font)
        tile = tile.rotate(-math.degrees(angle) - 90)
        left, top = (int(size / 2 + 0.32 * size * at - tile.width / 2) for at in (math.cos(angle), math.sin(angle)))
        page.paste(Image.new("RGB", tile.size, red), (left, top), tile)
    return torch.from_numpy(np.asarray(page, np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def _bands(frames: int, bands: int) -> Tensor:
    """What a sound like vowels has in the bands of a mel scale, 100 times a second, in powers of ten: [1, frames, bands]."""
    time = np.arange(160 * frames + 240) / 16000
    phase = np.cumsum(2 * np.pi * 110 * (1 + 0.2 * np.sin(2 * np.pi * 1.5 * time)) / 16000)
    voice = np.random.default_rng(0).normal(0, 0.002, time.size)
    for n in range(1, 40):
        near = [np.exp(-(((110 * n - at - by * np.sin(pace * time)) / width) ** 2))
                for at, by, pace, width in ((500, 200, 9, 120), (1500, 600, 7, 200))]  # fmt: skip
        voice += 0.2 * np.sin(n * phase) / n**0.5 * (near[0] + 0.6 * near[1]) * np.clip(np.sin(12.6 * time) + 0.3, 0, 1)
    power = [np.abs(np.fft.rfft(voice[160 * i : 160 * i + 400] * np.hanning(400), 512)) ** 2 for i in range(frames)]
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    at, low, middle, high = np.linspace(0, 8000, 257), edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.minimum((at - low) / (middle - low), (high - at) / (high - middle)).clip(0) * 2 / (high - low)
    return torch.from_numpy(np.log10(np.stack(power) @ filters.T + 1e-6)[None]).float()


def _pictures(sizes: tuple[int, ...]) -> Tensor | None:
    """A batch of pictures, channels in front or behind; None for sizes that no picture has."""
    if len(sizes) != 4 or not {sizes[1], sizes[3]} & {1, 3}:
        return None
    behind = sizes[1] not in (1, 3)
    height, width = sizes[1:3] if behind else sizes[2:]
    if min(height, width) < 8:
        return None
    found = torch.stack([_picture(height, width, i) for i in range(sizes[0])])[:, : sizes[3 if behind else 1]]
    return found.permute(0, 2, 3, 1).contiguous() if behind else found.contiguous()


def _drawn(session: Any, package: str, batch: int, length: int, height: int, size: int, most: int) -> dict[str, Tensor]:
    """Inputs by name; what a file leaves open is `batch` in front, `height` and `size` in pictures, `length` elsewhere.

    Whole numbers are below `most`, ones where the input is a mask, and `length` where it holds lengths.
    """
    draw, found = torch.Generator().manual_seed(0), {}
    named: dict[Any, int] = {}  # what has one name has one size
    voice = VOICE if {i.name for i in session.get_inputs()} == {"input", "state", "sr"} else {}
    for given in session.get_inputs():
        sizes = SIZES.get(package, voice).get(given.name)
        if sizes is None or len(sizes) != len(given.shape):
            picture = len(given.shape) == 4
            front = (
                size if picture and given.shape[-1] in (1, 3) else 3
            )  # of a picture with channels behind, its height
            open_sizes = [batch, *([front, height, size] if picture else [length] * (len(given.shape) - 1))]
            sizes = tuple(
                n if isinstance(n, int) and n > 0 else named.setdefault(n or (given.name, i), open_sizes[i])
                for i, n in enumerate(given.shape)
            )
        kind = TYPES[given.type[7:-1]]
        if given.name in NUMBERS:
            found[given.name] = torch.tensor(NUMBERS[given.name]).to(kind)
        elif kind.is_floating_point:
            picture = None if package in SIZES else _pictures(sizes)
            found[given.name] = (0.1 * torch.randn(sizes, generator=draw) if picture is None else picture).to(kind)
        elif "mask" in given.name:
            found[given.name] = torch.ones(sizes, dtype=kind)
        elif "length" in given.name:
            found[given.name] = torch.full(sizes, length, dtype=kind)
        else:
            found[given.name] = torch.randint(0, most, sizes, generator=draw).to(kind)
    return found


def inputs_of(session: Any, package: str, path: Path) -> dict[str, Tensor]:
    """Inputs of the first sizes, and of the widest range of whole numbers, that onnxruntime itself runs.

    What looks for seals gets a page with a stamp (on a page that has none, all of its outputs are 1e-7); a window of a mel
    scale gets a voice.
    """
    first = session.get_inputs()[0]
    if "seal" in path.stem:
        return {first.name: _stamped(320, 0)[None]}
    if first.name == "mel_window":
        return {first.name: _bands(*first.shape[1:])}
    for height, size, length, batch, most in itertools.product((0, 48, 32), (64, 320), (16, 576), (2, 1), (256, 2)):
        inputs = _drawn(session, package, batch, length, height or size, size, most)
        if batch > 1 and sum(x.numel() for x in inputs.values()) > LARGE:
            continue
        try:
            session.run(None, {k: v.numpy() for k, v in inputs.items()})
        except Exception as error:  # onnxruntime's own classes share no base
            said = error
        else:
            return inputs
    raise RuntimeError(f"onnxruntime does not run it: {one_line(said)[:160]}")
