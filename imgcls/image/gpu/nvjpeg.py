"""JPEG decoding on the GPU that the model runs on, beside the decoder processes.

In: tasks of a decoder pool, from any thread. Out: their crops. Invariant: it gives crops or gives
the task back: what is wrong with an image, only the decoder processes say.

By nvImageCodec, that is nvJPEG with the chroma upsampling of libjpeg, whose pixels differ from
libjpeg's by a few levels: its inverse DCT is another. All else is equal: the header decides as it
does for the decoder processes, and the resize is the same, bit for bit. On a CPU, for tests,
nvImageCodec decodes by libjpeg-turbo, and every pixel is equal.

Not by torchvision's decode_jpeg: on a GPU it repeats chroma, it is deprecated, and nvJPEG's
hardware writes into memory that the caller's stream still reads (pytorch/vision#9606).

There is no process around it: a file that could crash nvJPEG would end the worker.

Legend: H, W height and width of the source, C channels, Y, X height and width of the model's
input, B batch.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import ImageFile

from imgcls.errors import ConfigError
from imgcls.image.crops import Crop
from imgcls.image.decoders.scheduler import Task
from imgcls.image.fit.placement import resized_size
from imgcls.image.formats.raster.decode import exif_orientation, open_raster
from imgcls.image.formats.raster.jpeg import scale_by_dct
from imgcls.image.formats.raster.jpeg_markers import (
    BASELINE,
    END_OF_IMAGE,
    EXTENDED,
    Frame,
    read_frame,
)
from imgcls.image.gpu.resample import preprocess_on_device
from imgcls.image.spec import DecodeSpec, PreprocessSpec

_BATCH_SIZE: Final = 64
# The batch on the device, the one that is started meanwhile, and one that waits.
_MAX_IN_FLIGHT: Final = 3 * _BATCH_SIZE
# Larger ones would fill the device; a decoder process takes them at a half or less of their size.
_MAX_PIXELS: Final = 4 << 20
_MAX_HOST_THREADS: Final = 4  # for those parts of nvJPEG that a CPU does
_MAX_FAILURES_IN_A_ROW: Final = 3
# Sampling factors of luma for 4:4:4, 4:2:2 and 4:2:0, those of chroma being 1.
_SAMPLINGS: Final = ((1, 1), (2, 1), (2, 2))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Started:
    """Files that the device is at: what it decoded, and where the crops will lie once copied."""

    images: list[torch.Tensor | None]
    x_BCYX: torch.Tensor | None
    is_copied: torch.cuda.Event | None


_Item = tuple[Task, Callable[[Task], None]]


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay:
    """Tasks, each with who takes it back; nothing is started for them where that failed."""

    wanted: list[_Item]
    started: _Started | None


_NOTHING: Final = _UnderWay([], None)


class DeviceJpegDecoder:
    """Takes plain JPEGs from a decoder pool as long as it has room. Thread-safe.

    Args:
        decode_spec: those of the pool.
        preprocess_spec: likewise.
        device: where to decode.

    Raises:
        ConfigError: nvImageCodec is not installed.
    """

    capacity = _MAX_IN_FLIGHT

    def __init__(
        self, decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec, device: torch.device
    ) -> None:
        nvimgcodec = _import_nvimgcodec()
        self._decode_spec, self._preprocess_spec = decode_spec, preprocess_spec
        self._device = device
        self._decoder = _open_decoder(nvimgcodec, device)
        # None: no stream of its own.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        is_gray = decode_spec.color == "gray"
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=nvimgcodec.ColorSpec.GRAY if is_gray else nvimgcodec.ColorSpec.SRGB,
        )
        self._lock = threading.Lock()  # of the three
        self._num_in_flight = self._num_decoded = 0
        self._is_closed = False
        self._num_failures = 0
        self._inbox: queue.SimpleQueue[_Item | None]
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="imgcls-device-jpeg", daemon=True)
        self._thread.start()

    def take(self, task: Task, give_back: Callable[[Task], None]) -> bool:
        """Take a task, if it is one for here and there is room.

        Args:
            task: finished here, later, or given back.
            give_back: called, from another thread, with a task that could not be decoded here.
        """
        with self._lock:
            if self._is_closed or self._num_in_flight >= _MAX_IN_FLIGHT:
                return False
        if not self.is_plain(task.data):
            return False
        with self._lock:
            if self._is_closed:
                return False
            self._num_in_flight += 1
            self._inbox.put((task, give_back))
        return True

    def is_plain(self, data: bytes) -> bool:
        """Tell whether this is a JPEG that may be decoded here.

        Whole as far as its end tells, baseline, 8 bits, grey or YCbCr, upright, of a moderate size,
        and one that a decoder process would decode at full size and without converting colours.
        """
        if not (data.startswith(b"\xff\xd8\xff") and data.endswith(END_OF_IMAGE)):
            return False
        try:
            source = open_raster(data, "JPEG")
        except Exception:  # noqa: BLE001 - a decoder process tells what is wrong with it
            return False
        spec, preprocess_spec = self._decode_spec, self._preprocess_spec
        width_px, height_px = source.size
        wanted = resized_size(*source.size, preprocess_spec) if spec.dct_scaling else None
        return (
            read_frame(data).marker in (BASELINE, EXTENDED)
            and _is_plain_coding(source)
            and source.mode in (("RGB", "L") if spec.color == "rgb" else ("L",))
            and width_px * height_px <= min(spec.max_pixels, _MAX_PIXELS)
            and scale_by_dct(source.size, wanted) == 1
            and not (spec.icc == "srgb" and source.info.get("icc_profile"))
            and exif_orientation(source) == 1
        )

    def decode(self, files: Sequence[bytes]) -> list[list[Crop] | None]:
        """Decode and preprocess files that are plain; None for one that can't be decoded here."""
        return self._finish(self._start(files))

    def _start(self, files: Sequence[bytes]) -> "_Started":
        """Have the device decode, resize and copy back; on CUDA, without waiting for that."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            images = [
                self._to_tensor(image, read_frame(data))
                for image, data in zip(self._decode(files), files, strict=True)
            ]
            crops = [self._preprocess(image_HWC) for image_HWC in images if image_HWC is not None]
            # One copy for all of them, into pinned memory.
            x_BCYX = torch.stack(crops).to("cpu", non_blocking=True) if crops else None
            is_copied = self._stream.record_event() if self._stream is not None else None
        # The images themselves stay until then: the device reads them.
        return _Started(images, x_BCYX, is_copied)

    def _finish(self, started: "_Started") -> list[list[Crop] | None]:
        """Wait for what was started, and return its crops."""
        if started.is_copied is not None:
            started.is_copied.synchronize()
        on_host = iter(started.x_BCYX.numpy() if started.x_BCYX is not None else ())
        return [
            None
            if image_HWC is None
            else [Crop(next(on_host), image_HWC.shape[1], image_HWC.shape[0], None)]
            for image_HWC in started.images
        ]

    def num_decoded(self) -> int:
        """Return how many tasks were done here so far, for statistics."""
        return self._num_decoded

    def close(self) -> None:
        """Give back what is not decoded yet, and end."""
        with self._lock:
            self._is_closed = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Start a batch before the last one is waited for, so that the device always has one."""
        is_open, under_way = True, _NOTHING
        while is_open or under_way.wanted:
            batch: list[_Item | None] = []
            if is_open and not under_way.wanted:
                batch.append(self._inbox.get())
            while is_open and len(batch) < _BATCH_SIZE and not self._inbox.empty():
                batch.append(self._inbox.get())
            is_open = is_open and None not in batch
            next_one = self._start_on([item for item in batch if item is not None])
            self._finish_on(under_way)
            under_way = next_one

    def _start_on(self, batch: "list[_Item]") -> "_UnderWay":
        wanted = [(task, give_back) for task, give_back in batch if task.is_wanted()]
        started: _Started | None = None
        if wanted and not self._is_closed:
            try:
                started = self._start([task.data for task, _ in wanted])
            except Exception as error:  # noqa: BLE001 - whatever it is, the processes can do it
                self._note_failure(error)
        with self._lock:
            self._num_in_flight -= len(batch) - len(wanted)
        return _UnderWay(wanted, started)

    def _finish_on(self, under_way: "_UnderWay") -> None:
        found: list[list[Crop] | None] = [None] * len(under_way.wanted)
        if under_way.started is not None:
            try:
                found = self._finish(under_way.started)
                self._num_failures = 0
            except Exception as error:  # noqa: BLE001 - as above
                self._note_failure(error)
        with self._lock:
            self._num_in_flight -= len(under_way.wanted)
            self._num_decoded += sum(crops is not None for crops in found)
        for (task, give_back), crops in zip(under_way.wanted, found, strict=True):
            if crops is None:
                give_back(task)
            else:
                task.finish(crops)

    def _note_failure(self, error: Exception) -> None:
        self._num_failures += 1
        gives_up = self._num_failures == _MAX_FAILURES_IN_A_ROW
        _log.warning(
            "decoding on the GPU failed (%s): %s",
            error,
            "no more is tried" if gives_up else "its images go to the decoder processes",
        )
        if gives_up:
            with self._lock:
                self._is_closed = True

    def _decode(self, files: Sequence[bytes]) -> list[Any]:
        on_stream = {"cuda_stream": self._stream.cuda_stream} if self._stream is not None else {}
        return list(self._decoder.decode(list(files), params=self._params, **on_stream))

    def _to_tensor(self, image: Any, frame: Frame) -> torch.Tensor | None:  # noqa: ANN401
        """Return uint8 [H,W,C] on the device, without copying; None for what is not that."""
        expected = (frame.height_px, frame.width_px, self._decode_spec.num_channels)
        if image is None or tuple(image.shape) != expected:
            return None
        if self._device.type == "cuda":
            return torch.utils.dlpack.from_dlpack(image)
        return torch.from_numpy(np.asarray(image))

    def _preprocess(self, image_HWC: torch.Tensor) -> torch.Tensor:
        return preprocess_on_device(image_HWC, self._preprocess_spec)


# Any: nvImageCodec has no types.
def _import_nvimgcodec() -> Any:  # noqa: ANN401
    # It tells of every codec that it could have had, on stderr.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise ConfigError(
            'decoding on a GPU needs nvImageCodec: pip install "imgcls[gpu-decode]"'
        ) from error
    return nvimgcodec


def _open_decoder(nvimgcodec: Any, device: torch.device) -> Any:  # noqa: ANN401
    kind, device_id = nvimgcodec.BackendKind, nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
    kinds = [kind.CPU_ONLY]
    if device.type == "cuda":
        kinds = [kind.HW_GPU_ONLY, kind.GPU_ONLY, kind.HYBRID_CPU_GPU]
        device_id = torch.cuda.current_device() if device.index is None else device.index
    return nvimgcodec.Decoder(
        device_id=device_id,
        max_num_cpu_threads=max(1, min(_MAX_HOST_THREADS, len(os.sched_getaffinity(0)) // 2)),
        backends=[nvimgcodec.Backend(kind) for kind in kinds],
        options=":fancy_upsampling=1",
    )


def _is_plain_coding(source: ImageFile.ImageFile) -> bool:
    """Tell whether libjpeg and nvJPEG agree on what a header means: components, colours."""
    layers = getattr(source, "layer", [])
    if source.info.get("progressive") or getattr(source, "bits", 8) != 8:
        return False
    if source.mode == "L":
        return len(layers) == 1
    identifiers = [layer[0] for layer in layers]
    samplings = [tuple(layer[1:3]) for layer in layers]
    return (
        len(layers) == 3
        and ("jfif" in source.info or identifiers == [1, 2, 3])
        and source.info.get("adobe_transform", 1) == 1
        and samplings[0] in _SAMPLINGS
        and samplings[1:] == [(1, 1), (1, 1)]
    )
