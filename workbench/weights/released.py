"""The released weights: their addresses and hashes, and how to find a file by name."""

from dataclasses import dataclass
from pathlib import Path

from workbench.errors import WorkbenchError, unknown
from workbench.files import local_path
from workbench.models import zoo
from workbench.weights.downloads import cache_folder, check_digest, fetch


@dataclass(frozen=True)
class Released:
    """Public weights.

    Attributes:
        url: Where they are.
        digest: "md5:<hex>" or "sha256:<hex>", which may be a prefix.
        size: Size in bytes, if it is known.
    """

    url: str
    digest: str
    size: int | None = None

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


_BUCKET = "https://storage.googleapis.com/dm-nfnets"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download"

RELEASED = {
    "nfnet_f0": Released(f"{_BUCKET}/F0_haiku.npz", "md5:0a41039da1cb43adf47f1b7d86ddfe0f", 285_976_842),
    "nfnet_f1": Released(f"{_BUCKET}/F1_haiku.npz", "md5:c9126bbfaf855f9ddb7ff3b902558781"),
    "nfnet_f2": Released(f"{_BUCKET}/F2_haiku.npz", "md5:7a018d8d1498020e2f5a8719a1e7f53f"),
    "nfnet_f3": Released(f"{_BUCKET}/F3_haiku.npz", "md5:d8e1e78d26db659c486150dbaccbe78a"),
    "nfnet_f4": Released(f"{_BUCKET}/F4_haiku.npz", "md5:f5974a7e3388aa81b91a9f1403e759a4"),
    "nfnet_f5": Released(f"{_BUCKET}/F5_haiku.npz", "md5:8639e925de951030651ac775b9f915c3"),
    "nfnet_f6": Released(f"{_BUCKET}/F6_haiku.npz", "md5:b16cca40ac1ecec2bd5e3273866da0c1"),
    "timm_nf_resnet50": Released(f"{_TIMM}/v0.1-weights/nf_resnet50_ra2-9f236009.pth", "sha256:9f236009"),
    "timm_nf_regnet_b1": Released(f"{_TIMM}/v0.1-weights/nf_regnet_b1_256_ra2-ad85cfef.pth", "sha256:ad85cfef"),
    "timm_nfnet_l0": Released(f"{_TIMM}/v0.1-weights/nfnet_l0_ra2-45c6688d.pth", "sha256:45c6688d"),
    "timm_eca_nfnet_l0": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l0_ra2-e3e9ac50.pth", "sha256:e3e9ac50"),
    "timm_eca_nfnet_l1": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l1_ra2-7dce93cd.pth", "sha256:7dce93cd"),
    "timm_eca_nfnet_l2": Released(f"{_TIMM}/v0.1-weights/ecanfnet_l2_ra3-da781a61.pth", "sha256:da781a61"),
}


def find(source: str | Path, *, verify: bool = True, progress: bool = True) -> Path:
    """Find a file of weights. A released file is fetched once.

    Args:
        source: A path that exists, or the name of a released model or of its file.
        verify: Check the hash of a file that has a released file's name.
        progress: Show a progress bar while downloading.

    Raises:
        WorkbenchError: If there is no such file, or it is not the released one.
    """
    if not isinstance(source, str | Path):
        raise WorkbenchError(f"`source` must be a path or the name of released weights, got {source!r}.")
    path = local_path(source)
    by_file = {released.file_name: released for released in RELEASED.values()}
    if path.is_file():
        if verify and path.name in by_file:
            check_digest(path, by_file[path.name].digest)
        return path
    released = RELEASED.get(str(source)) or by_file.get(str(source))
    if released is not None:
        return fetch(released.url, released.digest, size=released.size, progress=progress)
    if path.suffix or "/" in str(source):
        raise WorkbenchError(f"There is no file of weights at {path}.")
    if str(source) in zoo.MODELS:
        raise WorkbenchError(f"No weights of '{source}' were released. Use one of {', '.join(RELEASED)}.")
    raise unknown("released model", str(source), RELEASED)


def is_cached(model: str) -> bool:
    """Whether the cache holds the released weights of a model.

    `workbench models download` fetches them.
    """
    return model in RELEASED and (cache_folder() / RELEASED[model].file_name).is_file()
