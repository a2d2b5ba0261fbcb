"""Models by what a config calls them: a folder, a name on the Hub, or the URL of a folder in a bucket."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from lr_ray.store import filesystem

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def local(model: str, *, weights: bool = True) -> str:
    """What transformers and vLLM can load: `model` as it is, or the folder that its URL is copied to.

    A copy lies beside the Hub's cache (HF_HOME). It is made once a machine, however many ask for it, and
    anew when names, sizes or times of the files there change. Subfolders stay behind. Engines that reach
    over several machines need a path that all of them see instead.

    Args:
        weights: without them, only what configs and tokenizers are read from.

    Raises:
        ValueError: nothing can be read there, or it is no model folder.
    """
    if "://" not in model:
        return model
    fs, root = filesystem(model)
    if isinstance(fs, pafs.LocalFileSystem):
        return root
    try:
        there = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    except OSError as error:
        raise ValueError(f"{model}: {' '.join(str(error).split())}") from error
    files = sorted((one.base_name, one.size, one.mtime_ns) for one in there if one.is_file)
    if "config.json" not in [name for name, *_ in files]:
        raise ValueError(f"{model}: no config.json there, so not a model folder")
    if not weights:
        files = [one for one in files if not one[0].endswith(WEIGHTS)]
    target = _cache() / hashlib.sha256(repr((model, files)).encode()).hexdigest()[:32]
    with _alone(target):
        if not target.is_dir():
            _copy(fs, root, [name for name, *_ in files], target)
    return str(target)


def _cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "lr-ray"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Engines of one machine start together; one copies, the others wait for it."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(fs: pafs.FileSystem, root: str, names: list[str], target: Path) -> None:
    """The files, whole or not at all: a folder of this name is never half of a model."""
    aside = target.with_suffix(".tmp")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir()
    for name in names:
        pafs.copy_files(
            f"{root}/{name}",
            str(aside / name),
            source_filesystem=fs,
            destination_filesystem=pafs.LocalFileSystem(),
        )
    aside.rename(target)
